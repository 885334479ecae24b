"""``python -m qdeq``: the command line."""

import sys

from qdeq.cli import main

if __name__ == "__main__":
    sys.exit(main())
