"""A TorchScript file from nowhere: int8, no class, no source. What is in it, its float model, and why they differ.

    python examples/torchscript_file.py [model.pt]

Without an argument it writes such a file first.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from common import example_images, int8_model

import qdeq


def main() -> None:
    """Read the file, rebuild, run, train a step."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "model.pt"
        if not path.exists():
            torch.jit.save(torch.jit.script(int8_model()), path)
        with qdeq.open(path) as weights:
            for entry in weights.describe():
                print(f"{entry.name:24} {'x'.join(map(str, entry.shape)):12} {entry.dtype}")
        # The file's code is parsed and followed; it is not loaded, and nothing in it runs.
        rebuilt, report = qdeq.dequantize_model(path, return_report=True)
    print(f"{len(report.entries)} tensors, {sum(p.numel() for p in rebuilt.parameters())} parameters")
    print(rebuilt.code)
    if len(sys.argv) == 1:
        images = example_images()
        with torch.no_grad():
            difference = (rebuilt(images) - int8_model()(images)).abs().max()
        print(f"largest difference to the int8 model: {difference:.4f}")
        rebuilt(images).square().mean().backward()
        print(f"gradients for {sum(p.grad is not None for p in rebuilt.parameters())} parameters")


if __name__ == "__main__":
    main()
