"""The command line as a process: signals, limits, a terminal."""

from __future__ import annotations

import os
import pty
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

import qdeq
from tests.cli.helpers import PYTHON


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """60 MB as float32: long enough to be interrupted."""
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    weight = qdeq.QuantizedWeight(
        torch.ones(15_000, 1000, dtype=torch.int8), torch.tensor(0.5).double(), torch.tensor(0), None,
        "per_tensor_affine", "qint8", (15_000, 1000),
    )  # fmt: skip
    qdeq.save_safetensors({"w": weight}, path, keep="int8")
    return path


def wait_for_part(folder, process):
    """Wait until the unfinished file is there."""
    end = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < end:
        if any(name.endswith(".tmp") for name in os.listdir(folder)):
            return
        time.sleep(0.001)


# The command line with a disk that never ends its first write, so that a signal finds it at work. What is started in
# the background of a shell ignores SIGINT, and so would its children.
SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from qdeq.files import streaming
whole = streaming._write_all
def slow(piece, buffer):
    whole(piece, buffer)
    time.sleep(600)
streaming._write_all = slow
from qdeq.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_process_leaves_nothing(large, tmp_path, number, status):
    command = [sys.executable, "-W", "ignore", "-c", SLOW, "convert", large, tmp_path / "model.safetensors"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_part(tmp_path, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    assert b"Traceback" not in err
    if process.returncode == 0:
        pytest.fail(f"finished before the signal: {out!r}")
    assert process.returncode == status
    assert os.listdir(tmp_path) == []


def test_a_file_size_limit_leaves_nothing(large, tmp_path):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000))  # noqa: E731
    done = subprocess.run(
        [*PYTHON, "convert", large, tmp_path / "model.safetensors"], preexec_fn=limit, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "expected room for 60000" in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_terminal_of_80_columns(checkpoint):
    """Colours, and no line longer than the terminal; nothing of a name is lost."""
    main_side, process_side = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    with os.fdopen(main_side, "rb", buffering=0) as screen:
        subprocess.run(
            [*PYTHON, "inspect", checkpoint], stdout=process_side, env=environment, check=True, stdin=process_side
        )
        os.close(process_side)
        text = b""
        while True:
            try:
                part = screen.read(65536)
            except OSError:  # Linux says EIO at the end of a terminal
                break
            if not part:
                break
            text += part
    lines = text.decode().replace("\r", "").splitlines()
    assert "\x1b[1m" in lines[0]
    plain = [line.replace("\x1b[1m", "").replace("\x1b[0m", "") for line in lines]
    assert max(map(len, plain)) <= 80
    assert any(line.startswith("0.weight") for line in plain)


def test_completion():
    environment = {**os.environ, "_QDEQ_COMPLETE": "bash_complete", "COMP_WORDS": "qdeq in", "COMP_CWORD": "1"}
    done = subprocess.run(PYTHON, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["plain,inspect", "plain,info"]
