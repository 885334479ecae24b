"""Int8 torch -> int8 ONNX Runtime, with the same integers.

Needs the extra [onnx]. Usage: python examples/int8_onnx.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import onnxruntime
import torch
from common import example_images, int8_model

import qdeq


def main(folder: Path) -> None:
    """Export, run in both, compare."""
    int8, images, path = int8_model(), example_images(), folder / "int8.onnx"

    report = qdeq.to_onnx(int8, images, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])

    kept = [entry.target for entry in report.entries if entry.qscheme is not None]
    print(f"{len(kept)} weights with their integers: {', '.join(kept)}")
    with torch.no_grad():
        steps = (outputs - int8(images)).abs().max() / int8.classifier.scale
    print(f"int8 torch and int8 ONNX Runtime: at most {steps:.2f} steps apart")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
