"""Int8 model -> float model, fine-tuned on new data, -> int8 again. First without training: the same integers come out.

Usage: python examples/fine_tune_and_requantize.py
"""

from __future__ import annotations

import torch
from common import SmallNet, example_images, int8_model, quantize
from torch.nn import functional as F

import qdeq

LAYERS = ("features.0", "features.3", "classifier")


def same_integers(int8: torch.nn.Module, rebuilt: torch.nn.Module) -> None:
    """Quantize each rebuilt weight with the scales it came from."""
    for path in LAYERS:
        old, weight = int8.get_submodule(path).weight(), rebuilt.get_submodule(path).weight.detach()
        scales, zero_points = old.q_per_channel_scales(), old.q_per_channel_zero_points()
        again = torch.quantize_per_channel(weight, scales, zero_points, old.q_per_channel_axis(), old.dtype)
        different = int((again.int_repr() != old.int_repr()).sum())
        print(f"{path}: {different} of {weight.numel()} integers differ")


def fine_tune(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(30):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (0, 29):
            print(f"step {step + 1}: loss {loss.item():.3f}")
    model.eval()


def main() -> None:
    int8 = int8_model()
    rebuilt = qdeq.dequantize_model(int8)
    same_integers(int8, rebuilt)

    images, labels = example_images(64), torch.randint(10, (64,))
    fine_tune(rebuilt, images, labels)

    # The float model has the names of the class it was made from; the class brings its stubs along.
    model = SmallNet()
    model.load_state_dict(rebuilt.state_dict())
    again = quantize(model)
    with torch.no_grad():
        agree = (again(images).argmax(1) == rebuilt(images).argmax(1)).float().mean()
    print(f"fine-tuned model and its int8 form agree on {100 * agree:.0f} % of the images")


if __name__ == "__main__":
    main()
