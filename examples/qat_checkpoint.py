"""A QAT checkpoint, long after: the weights that were trained, those it was evaluated with, the plain class again.

    python examples/qat_checkpoint.py

Trains a small network with quantization awareness, keeps its prepared model as a checkpoint, and gets three things out
of it without running it: the trained float weights in the plain class, the model as it was evaluated, and what rounding
and clipping its weights does to the outputs.
"""

from __future__ import annotations

import warnings

import torch
import torch.ao.quantization as tq
from torch import nn

from qdeq import dequantize_model

warnings.filterwarnings("ignore", message=".*torch.ao.quantization is deprecated")
warnings.filterwarnings("ignore", message=".*quant_min and quant_max.*")


class Net(nn.Module):
    """Two convolutions with batch norms, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.bn2, self.relu2 = nn.Conv2d(8, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        self.fc = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify images (n, 1, 12, 12)."""
        x = self.relu1(self.bn1(self.conv1(self.quant(x))))
        x = self.relu2(self.bn2(self.conv2(x)))
        return self.dequant(self.fc(x.mean((2, 3))))


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with one bright quadrant, and which it is."""
    labels = torch.randint(0, 4, (count,))
    noise = torch.randn(count, 1, 12, 12)
    for image, label in zip(noise, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        image[0, row * 6 : row * 6 + 6, column * 6 : column * 6 + 6] += 1.0 + label / 4
    return noise, labels


def train(model: nn.Module, steps: int) -> None:
    """Train with Adam on fresh images."""
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(steps):
        inputs, labels = images(64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def main() -> None:
    """Train, and read the result three ways."""
    torch.manual_seed(0)
    fused = tq.fuse_modules_qat(Net().train(), [["conv1", "bn1", "relu1"], ["conv2", "bn2", "relu2"]])
    fused.qconfig = tq.get_default_qat_qconfig("fbgemm")
    prepared = tq.prepare_qat(fused)
    train(prepared, 120)
    prepared.eval()
    prepared.apply(tq.disable_observer)
    inputs, labels = images(1000)

    plain = Net().eval()
    plain.load_state_dict(dequantize_model(prepared, fold_bn=False).state_dict())
    evaluated = dequantize_model(prepared, weights="rounded")
    with torch.no_grad():
        for name, model in (
            ("prepared", prepared),
            ("trained weights, plain class", plain),
            ("rounded weights", evaluated),
        ):
            accuracy = (model(inputs).argmax(1) == labels).float().mean()
            print(f"{name}: accuracy {accuracy:.3f}")
        rounded, trained = evaluated(inputs), plain(inputs)
        moved = (rounded - trained).square().mean() / trained.square().mean()
    # The observers of weights are moving averages: after fast training they clip what has grown since.
    print(f"rounding and clipping the weights moves the outputs by {100 * moved.sqrt():.1f} % of their size")


if __name__ == "__main__":
    main()
