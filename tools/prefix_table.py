"""Loads torchvision's converted models, saved under every prefix and wrapper, into the plain float classes.

Usage: python -m tools.prefix_table [NAME ...]

The float classes have the batch norms that the int8 models have not. A load counts as right if every key of the source
is written or named as dropped, every tensor of the float model is written, and its outputs are those of the dequantized
model within float error. Needs torchvision; run it from the root of the repository.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import qdeq
from tools.models import SIDES, converted_model, engine, example, float_model, torchvision_models

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch.ao.quantization as tq

State = Mapping[str, Any]
EXTRA = "vgg11_bn"


def below(front: str, state: State) -> dict[str, Any]:
    """The same state dict with something in front of its names."""
    return {front + key: value for key, value in state.items()}


def optimizer_state() -> dict[str, Any]:
    """Of an Adam that has made a step."""
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def _lightning(state: State) -> dict[str, Any]:
    metrics = {"val_acc.total": torch.tensor(3), "val_loss": torch.tensor(0.5)}
    extras = {"optimizer_states": [optimizer_state()], "hyper_parameters": {"lr": 0.1}, "epoch": 3}
    return {"state_dict": {**below("model.", state), **metrics}, **extras}


WRAPPERS: dict[str, Callable[[State], dict[str, Any]]] = {
    "as it is": dict,
    "module.": lambda state: below("module.", state),
    "model.": lambda state: below("model.", state),
    "net.": lambda state: below("net.", state),
    "_orig_mod.": lambda state: below("_orig_mod.", state),
    "module.model.": lambda state: below("module.model.", state),
    "a part under module.": lambda state: {_half_wrapped(key, state): value for key, value in state.items()},
    "state_dict": lambda state: {"state_dict": dict(state), "epoch": 3, "optimizer": optimizer_state()},
    "model_state_dict": lambda state: {"model_state_dict": dict(state), "optimizer_state_dict": optimizer_state()},
    "model, module.": lambda state: {"model": below("module.", state), "best_acc1": torch.tensor(0.5)},
    "Lightning": _lightning,
    "AveragedModel": lambda state: {"n_averaged": torch.tensor(7), **below("module.", state)},
}


def _half_wrapped(key: str, state: State) -> str:
    """Below the first module's name for half of them, as where one part was trained with DataParallel."""
    tops = sorted({name.partition(".")[0] for name in state})
    top, _, rest = key.partition(".")
    return f"{top}.module.{rest}" if rest and top in tops[::2] else key


def models(names: list[str]) -> Iterator[tuple[str, nn.Module, nn.Module, Tensor]]:
    """Name, int8 model, float class and input."""
    for name in names:
        if name == EXTRA:
            yield (name, *_vgg())
        else:
            yield name, converted_model(name), float_model(name), example(name)


def _vgg() -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    make = torchvision_models().vgg11_bn
    plain, x = make(weights=None, init_weights=False).eval(), torch.randn(1, 3, 32, 32)
    plain.classifier = nn.Sequential(nn.Linear(512 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10))  # of a size for tests
    work = copy.deepcopy(plain)
    features = [str(at) for at, module in enumerate(work.features) if isinstance(module, nn.Conv2d)]
    groups = [[f"features.{int(at) + step}" for step in range(3)] for at in features]
    wrapped = nn.Sequential(tq.QuantStub(), tq.fuse_modules(work, groups), tq.DeQuantStub()).eval()
    with engine("fbgemm"):
        wrapped.qconfig = tq.get_default_qconfig("fbgemm")
        tq.prepare(wrapped, inplace=True)
        wrapped(x)
        tq.convert(wrapped, inplace=True)
    return wrapped[1], plain, x


def problem(int8: nn.Module, content: dict[str, Any], plain: nn.Module, x: Tensor) -> str:
    """What is wrong with a load; empty if nothing is."""
    target = copy.deepcopy(plain)
    for tensor in target.state_dict().values():
        tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.zero_()
    try:
        _, report = qdeq.dequantize_state_dict(content, into=target)
    except qdeq.QdeqError as error:
        return f"{type(error).__name__}: {error}"
    if any(tensor.isnan().any() for tensor in target.state_dict().values() if tensor.is_floating_point()):
        return "a tensor was not written"
    keys = set(flat(content)) - {key for key, value in flat(content).items() if value is None}
    rounding = {key for key in keys if key.endswith(("scale", "zero_point", ".dtype", "num_batches_tracked"))}
    known = report.accounted_sources()
    lost = [key for key in keys - known - rounding if not any(key.startswith(f"{name}.") for name in known)]
    if lost:
        return f"not accounted for: {', '.join(sorted(lost)[:3])}"
    with torch.no_grad():
        expected, got = qdeq.dequantize_model(int8)(x), target(x)
    error = (got - expected).abs().max() / expected.abs().max()
    return "" if error < 1e-3 else f"outputs differ by {error:.2g} of the largest"


def flat(content: Mapping[str, Any], front: str = "") -> dict[str, Any]:
    """Dotted keys of nested mappings."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= flat(value, f"{front}{key}.") if isinstance(value, Mapping) else {f"{front}{key}": value}
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[*SIDES, EXTRA])
    warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated")
    print("| model | keys | " + " | ".join(WRAPPERS) + " |")
    print("|" + "---|" * (len(WRAPPERS) + 2))
    right, problems = 0, []
    for name, int8, plain, x in models(parser.parse_args().names):
        cells = []
        for wrapper, wrap in WRAPPERS.items():
            why = problem(int8, wrap(int8.state_dict()), plain, x)
            cells.append("no" if why else "yes")
            right += not why
            problems += [f"{name}, {wrapper}: {why}"] if why else []
        print(f"| {name} | {len(int8.state_dict())} | " + " | ".join(cells) + " |", flush=True)
    print(f"\n{right} of {right + len(problems)} loads right")
    print("\n".join(problems))


if __name__ == "__main__":
    main()
