"""An int8 model of FX graph mode: its weights back in the plain float class, trained on, and as ONNX in float.

python examples/fx_model.py
"""

from __future__ import annotations

import copy
import io
import warnings

import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.nn import functional as F

import qdeq

warnings.filterwarnings("ignore", message=".*torch.ao.quantization is deprecated")
warnings.filterwarnings("ignore", message=".*quant_min and quant_max.*")
warnings.filterwarnings("ignore", message=".*quantized tensor creation functions")
warnings.filterwarnings("ignore", message=".*TorchScript type system")


class Net(nn.Module):
    """A residual block and a classifier whose weight is a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.weight, self.bias = nn.Parameter(torch.randn(4, 8) / 8), nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        """Classify images (n, 1, 12, 12)."""
        x = F.relu(self.stem(x))
        x = F.relu(self.block(x) + x)
        return F.linear(x.mean((2, 3)), self.weight, self.bias)


def main() -> None:
    """Quantize in graph mode, then get the float model back."""
    torch.manual_seed(0)
    model, images = Net().eval(), torch.randn(64, 1, 12, 12)
    torch.backends.quantized.engine = "fbgemm"
    prepared = prepare_fx(copy.deepcopy(model), tq.get_default_qconfig_mapping("fbgemm"), (images,))
    prepared(images)
    int8 = convert_fx(prepared)

    rebuilt, report = qdeq.dequantize_model(int8, return_report=True)
    for entry in report.entries:
        print(f"{entry.source:32} -> {entry.target}")
    with torch.no_grad():
        expected, imitated = int8(images), qdeq.dequantize_model(int8, activations="fake_quant")(images)
        print(f"float:      largest difference to int8 {(rebuilt(images) - expected).abs().max():.4f}")
        print(f"fake_quant: largest difference to int8 {(imitated - expected).abs().max():.4f}")

    optimizer = torch.optim.SGD(rebuilt.parameters(), 0.1)
    loss = F.cross_entropy(rebuilt(images), torch.arange(64) % 4)
    loss.backward()
    optimizer.step()
    print(f"one step of training: {sum(p.grad is not None for p in rebuilt.parameters())} parameters have gradients")

    script = io.BytesIO()
    torch.jit.save(torch.jit.script(rebuilt), script)
    print(f"scripted again: {len(script.getvalue())} bytes, {b'quantized' in script.getvalue()=}")


if __name__ == "__main__":
    main()
