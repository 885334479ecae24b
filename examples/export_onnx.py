"""Int8 model -> ONNX, with its activation quantization as QuantizeLinear and DequantizeLinear, in ONNX Runtime.

Needs the extra [onnx]. Usage: python examples/export_onnx.py [FILE.onnx]
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

import qdeq


def main(path: Path) -> None:
    int8 = int8_model()
    rebuilt = qdeq.dequantize_model(int8, activations="fake_quant")
    x = example_images()
    torch.onnx.export(rebuilt, (x,), path, dynamo=True, verbose=False)

    graph = onnx.load(path).graph
    print(dict(Counter(node.op_type for node in graph.node)))
    # Otherwise ONNX Runtime rounds the float weights of layers between such pairs to int8 once more, per tensor.
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    outputs = torch.from_numpy(session.run(None, {graph.input[0].name: x.numpy()})[0])
    with torch.no_grad():
        difference = (outputs - rebuilt(x)).abs().max()
        equal = (outputs == int8(x)).float().mean()
    print(f"ONNX Runtime and the rebuilt model differ by at most {difference:.1e}")
    print(f"ONNX Runtime and the int8 model: {100 * equal:.1f} % of the outputs are equal")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder) / "model.onnx")
