"""What the tests of the command line share."""

from __future__ import annotations

import sys

PYTHON = [sys.executable, "-W", "ignore", "-m", "qdeq"]
NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def assert_error(result, *words):
    status, out, err = result
    assert status == 2
    assert out == ""
    assert err.startswith("qdeq: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert "Traceback" not in err
