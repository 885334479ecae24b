"""The forms that torch saves a model in, and what a file of each must hold."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import qdeq

FORMS = ("state_dict", "plain_dict", "nested", "whole", "legacy", "legacy_whole", "script")
FROZEN = "frozen"  # a script whose modules, and with them all names, are gone


def save(model: nn.Module, form: str, path: Path, example: Tensor | None = None) -> str:
    """Save in one form; return the prefix that names get. With an example, scripts are traced instead of compiled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form in ("script", FROZEN):
            model.eval()
            script = torch.jit.script(model) if example is None else torch.jit.trace(model, example)
            torch.jit.save(torch.jit.freeze(script) if form == FROZEN else script, path)
        elif form in ("whole", "legacy_whole"):
            torch.save(model, path, _use_new_zipfile_serialization=form == "whole")
        elif form == "nested":
            torch.save({"epoch": 3, "model": model.state_dict(), "args": {"lr": 0.1}}, path)
        else:
            state = model.state_dict()
            torch.save(dict(state) if form == "plain_dict" else state, path,
                       _use_new_zipfile_serialization=form != "legacy")  # fmt: skip
    return "model." if form == "nested" else ""


def bits(value: qdeq.QuantizedWeight | Tensor) -> Tensor:
    tensor = value.dequantize() if isinstance(value, qdeq.QuantizedWeight) else value
    return tensor.detach().float().contiguous().view(torch.int32)


def check_equal(found: Mapping[str, qdeq.QuantizedWeight | Tensor], expected: Mapping[str, Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        assert tuple(found[name].shape) == tuple(value.shape), name
        assert torch.equal(bits(found[name]), bits(value)), name


def check_form(
    model: nn.Module, form: str, path: Path, expected: Mapping[str, Tensor], example: Tensor | None = None
) -> None:
    """Save, open, and compare what ``dequantize_state_dict`` makes of the archive with the live bits, by name."""
    prefix = save(model, form, path, example)
    with qdeq.open(path) as archive:
        if form == FROZEN:
            assert all(name.startswith("constants.") for name in archive)
            # Names are lost, and equal constants are one; scales of an FX graph are constants like others.
            weights = {name: value for name, value in archive.items() if value.shape != ()}
            assert _digests(weights) == _digests(expected)
            return
        assert all(name.startswith(prefix) for name in archive)
        found, _ = qdeq.dequantize_state_dict(archive)
    check_equal({name.removeprefix(prefix): value for name, value in found.items()}, expected)


def _digests(values: Mapping[str, qdeq.QuantizedWeight | Tensor]) -> set[tuple[tuple[int, ...], bytes]]:
    return {(tuple(value.shape), hashlib.sha256(bits(value).numpy()).digest()) for value in values.values()}


def poisoned(model: nn.Module) -> nn.Module:
    """Fill every parameter and buffer with NaN, so that one that is not written shows."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
    return model.eval()
