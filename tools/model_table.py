"""Writes the table of docs/models.md: how close the rebuilt models are to int8, end to end and layer by layer.

Usage: python -m tools.model_table [--digits FOLDER] [NAME ...]

FOLDER is what ``python -m qdeq.demo --save FOLDER`` wrote. Needs torchvision; run it from the root of the repository.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

import qdeq
from tools.agreement import layer_agreement
from tools.models import SIDES, converted_model, example

MODES = ("drop", "clamp", "fake_quant")


def row(name: str, int8: nn.Module, x: Tensor, *, layers: bool = True) -> str:
    """One line: mean difference in deviations and same top class per mode, equal outputs, equal values by layer."""
    torch.manual_seed(0)
    cells = [name]
    rebuilt = int8
    with torch.no_grad():
        expected = int8(x)
        spread = expected.std()
        for mode in MODES:
            rebuilt = qdeq.dequantize_model(int8, activations=mode).to(memory_format=torch.channels_last)
            actual = rebuilt(x.contiguous(memory_format=torch.channels_last))
            top = (actual.argmax(1) == expected.argmax(1)).float().mean()
            cells.append(f"{(actual - expected).abs().mean() / spread:.4f}, {100 * top:.0f} %")
        cells.append(f"{100 * (actual == expected).float().mean():.2f} %")
    if layers:
        agreement = layer_agreement(int8, rebuilt, x).values()
        share = sum(layer.equal for layer in agreement) / sum(layer.total for layer in agreement)
        cells += [f"{100 * share:.4f} %", f"{100 * min(layer.share for layer in agreement):.2f} %"]
    return "| " + " | ".join(cells) + " |"


def digits(folder: Path) -> str:
    """The line of the demo's trained network on its test images."""
    from qdeq.demo.data import load_digits
    from qdeq.demo.model import VGG11, load_int8

    state = torch.load(folder / "int8.pt", weights_only=True)
    hidden = state["classifier.0._packed_params._packed_params"][0].shape[0]
    like = VGG11(512, hidden, batch_norm="features.3.weight" not in state)
    images = load_digits()[1]
    return row("digits VGG11", load_int8(folder / "int8.pt", like), images.batch(torch.arange(len(images)))[0])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--digits", type=Path)
    parser.add_argument("names", nargs="*", default=list(SIDES))
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated")
    print("| model | drop | clamp | fake_quant | equal outputs | equal by layer | worst layer |")
    print("|---|---|---|---|---|---|---|")
    if options.digits:
        print(digits(options.digits))
    for name in options.names:
        print(row(name, converted_model(name), example(name, 4)), flush=True)


if __name__ == "__main__":
    main()
