"""Write docs/cli.md, and the excerpt of it in README.md: what the command line prints, taken by running it.

python tools/cli_transcript.py [FOLDER]

FOLDER is the root of the project, whose pages are rewritten. Commands run in a scratch folder with a small int8 model:
on a terminal of 80 columns (a pseudo terminal, its colours and bars taken out of the text) and into a pipe.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

COLUMNS = "80"
HEAD = """# The command line

`pip install "qdeq[cli]"` brings `qdeq` (also `python -m qdeq`). This page is the output of
`python tools/cli_transcript.py`, on a terminal of 80 columns; `model_int8.pth` is the state dict of a small VGG with
two Linear layers, quantized by torch, and `$?` is the exit status of the command before it.
"""
STEPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("What there is", ("qdeq --help", "qdeq info")),
    ("Looking into a file", ("qdeq inspect model_int8.pth",)),
    (
        "Converting",
        (
            "qdeq convert model_int8.pth model.safetensors --dry-run",
            "qdeq convert model_int8.pth model.safetensors",
            "qdeq convert model_int8.pth model.safetensors",
            "echo $?",
            "qdeq convert model_int8.pth half.safetensors --dtype bfloat16 --only '*.weight' --rename features=conv",
            "qdeq convert model_int8.pth shards.safetensors --shard-size 100KB",
            "ls shards*",
            "qdeq convert model_int8.pth kept.safetensors --keep int8",
        ),
    ),
    (
        "Checking",
        (
            "qdeq verify model_int8.pth model.safetensors",
            "qdeq verify model_int8.pth kept.safetensors",
            "qdeq diff model_int8.pth kept.safetensors",
            "qdeq diff model.safetensors trained.safetensors",
            "echo $?",
        ),
    ),
    ("When something is wrong", ("qdeq inspect damaged.pth", "echo $?", "qdeq convert model_int8.pth model.pth")),
    ("Into a pipe", ("qdeq inspect model_int8.pth | head -3", "qdeq inspect model_int8.pth --json | head -11")),
)

# What README.md shows, between the lines "```console" and "```" that follow MARK.
MARK = "<!-- of docs/cli.md, by tools/cli_transcript.py -->"
EXCERPT = (
    "qdeq inspect model_int8.pth",
    "qdeq convert model_int8.pth model.safetensors",
    "qdeq verify model_int8.pth model.safetensors",
    "qdeq diff model.safetensors trained.safetensors",
    "echo $?",
    "qdeq inspect model_int8.pth | head -3",
)


def make_files(folder: Path) -> None:
    """Put the files that the commands read into ``folder``."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.features = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Flatten()
    )
    model.classifier = nn.Sequential(nn.Linear(64 * 36, 128), nn.ReLU(), nn.Linear(128, 10))
    model.eval()
    model.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
    torch.backends.quantized.engine = "fbgemm"
    torch.ao.quantization.prepare(model, inplace=True)
    model(torch.rand(8, 3, 16, 16))
    torch.ao.quantization.convert(model, inplace=True)
    path = folder / "model_int8.pth"
    torch.save(model.state_dict(), path)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (folder / "damaged.pth").write_bytes(damaged)


def make_trained(folder: Path) -> None:
    """Make a file that differs from the converted one."""
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.2.weight"] += 0.001
    tensors["extra.bias"] = tensors["classifier.2.bias"].clone()
    save_file(tensors, folder / "trained.safetensors")


def on_terminal(command: str, folder: Path, status: int) -> tuple[str, int]:
    """Run a command with a terminal of 80 columns as stdin, stdout and stderr; return its text and status."""
    ours, theirs = pty.openpty()
    shell = f"(exit {status}); {command}"
    environment = {**os.environ, "COLUMNS": COLUMNS, "TERM": "xterm-256color", "PYTHONWARNINGS": "ignore"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    process = subprocess.Popen(
        ["bash", "-c", shell], cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    raw = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says EIO at the end of a terminal
            break
        if not part:
            break
        raw += part
    os.close(ours)
    return _settled(raw.decode()), process.wait()


def _settled(text: str) -> str:
    """Return what is left on the screen: no colours, and no bar that was wiped out again."""
    lines = [""]
    row = 0
    for part in re.findall(r"\x1b\[([0-9;?]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)", text):
        count, code, move, plain = part
        if code == "A":
            row = max(0, row - int(count or 1))
        elif code == "K" or move == "\r":
            lines[row] = "" if code == "K" else lines[row] + "\r"
        elif move == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif plain:
            # After a carriage return, what is written replaces what was there.
            lines[row] = plain if lines[row].endswith("\r") else lines[row] + plain
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def transcript(folder: Path) -> str:
    """Run all steps and return the page."""
    page = [HEAD]
    status = 0
    for title, commands in STEPS:
        lines = []
        for command in commands:
            if "trained" in command:
                make_trained(folder)
            text, code = on_terminal(command, folder, status)
            status = code
            lines += [f"$ {command}", *([text] if text else []), ""]
        block = "\n".join(lines).rstrip()
        page.append(f"## {title}\n\n```console\n{block}\n```\n")
    return "\n".join(page)


def excerpt(page: str) -> str:
    """Return what README.md shows: the first block of each command of :data:`EXCERPT`, in the page's order."""
    blocks = []
    at = 0
    for command in EXCERPT:
        at = page.index(f"$ {command}\n", at)
        end = min(found for found in (page.find("\n$ ", at), page.find("\n```", at)) if found > 0)
        blocks.append(page[at:end].strip("\n"))
        at = end
    return "\n\n".join(blocks)


def in_readme(text: str) -> tuple[int, int]:
    """Return where in README.md the excerpt begins and ends."""
    begin = text.index("```console\n", text.index(MARK)) + len("```console\n")
    return begin, text.index("\n```", begin)


def main(root: Path) -> None:
    """Write both pages."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        make_files(Path(scratch))
        page = transcript(Path(scratch))
    (root / "docs" / "cli.md").write_text(page)
    readme = (root / "README.md").read_text()
    begin, end = in_readme(readme)
    (root / "README.md").write_text(readme[:begin] + excerpt(page) + readme[end:])
    print("wrote docs/cli.md and README.md")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent)
