"""Int8 model -> ONNX -> ONNX Runtime: the float model, and the one with QuantizeLinear and DequantizeLinear pairs.

Needs the extra [onnx]. Usage: python examples/export_onnx.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import torch
from common import example_images, int8_model
from torch import Tensor, nn

import qdeq


def run(model: nn.Module, x: Tensor, path: Path) -> Tensor:
    """Export ``model`` to ``path``, name the operations in the file, and run it."""
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    graph = onnx.load(path).graph
    print(f"{path.name}: {dict(Counter(node.op_type for node in graph.node))}")
    # Otherwise ONNX Runtime rounds the float weights of layers between such pairs to int8 once more, per tensor.
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {graph.input[0].name: x.numpy()})[0])


def main(folder: Path) -> None:
    int8 = int8_model()
    x = example_images()
    for activations in ("drop", "fake_quant"):
        rebuilt = qdeq.dequantize_model(int8, activations=activations)
        outputs = run(rebuilt, x, folder / f"{activations}.onnx")
        with torch.no_grad():
            difference = (outputs - rebuilt(x)).abs().max()
            equal = (outputs == int8(x)).float().mean()
        print(f"{activations}: ONNX Runtime and the rebuilt model differ by at most {difference:.1e}")
        print(f"{activations}: {100 * equal:.1f} % of ONNX Runtime's outputs equal the int8 model's")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
