"""``python -m qdeq.demo``: the command line of the demo."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from qdeq.cli.status import ERROR, STOPPED, lacks_packages
from qdeq.errors import QdeqError

__all__ = ["main"]

NEEDED = ("rich", "sklearn", "torchvision")
LARGEST_WIDTH = 100


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m qdeq.demo",
        description="Train a VGG11, quantize it, lose it by copying by name, and get it back with qdeq.",
        epilog="Exit status: 0 if the numbers hold, 1 if they do not, 2 if the demo could not be run.",
    )
    parser.add_argument("--data", choices=("digits", "cifar10"), default="digits", help="default: digits")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder that holds cifar-10-batches-py")
    parser.add_argument(
        "--download", action="store_true", help="let torchvision fetch CIFAR10 (170 MB) into --data-dir"
    )
    parser.add_argument("--quick", action="store_true", help="VGG11 with batch norm, fewer epochs: a minute or two")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the images in float, before QAT")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and order of images; default: 0")
    parser.add_argument("--save", type=Path, metavar="DIR", help="keep the models, the report and the numbers there")
    parser.add_argument("--force", action="store_true", help="let --save replace files of the same names")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        The exit status: 0 the numbers hold, 1 they do not, 2 the demo could not be run.

    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if (arguments.data == "cifar10") != (arguments.data_dir is not None):
        parser.error("--data cifar10 and --data-dir DIR go together")
    if arguments.download and arguments.data != "cifar10":
        parser.error("--download is for --data cifar10")
    if arguments.force and arguments.save is None:
        parser.error("--force is for --save DIR")
    if arguments.epochs is not None and arguments.epochs < 1:
        parser.error(f"argument --epochs: expected 1 or more, got {arguments.epochs}")
    if lacks_packages(parser.prog, "demo", NEEDED):
        return ERROR

    from rich.console import Console

    from qdeq.demo.story import Options, tell

    console = Console(highlight=False, markup=False, emoji=False)
    console.width = min(console.width, LARGEST_WIDTH) if console.is_terminal else LARGEST_WIDTH
    try:
        return tell(Options(**vars(arguments)), console)
    except QdeqError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return ERROR
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped", file=sys.stderr)
        return STOPPED


if __name__ == "__main__":
    sys.exit(main())
