"""Values into a float model: all of them, or none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qdeq.errors import QdeqValueError, expected
from qdeq.state_dicts.matching import WHERE, Match

__all__ = ["load"]


def load(model: nn.Module, matches: list[Match], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Write everything, or, if one write fails, put back what was there.

    Args:
        model: the float model.
        matches: what goes where; shapes are already checked.
        tensors: float name of a source -> its value.

    Returns:
        Name in the model -> the value that was written.

    """
    targets = model.state_dict(keep_vars=True)
    values: dict[str, Tensor] = {}
    for found in matches:
        target = targets[found.target]
        if target.device.type == "meta":
            remedy = "Call to_empty(device='cpu') on it first."
            raise QdeqValueError(expected(f"{WHERE}: {found.target}", "a tensor with memory", "a meta tensor", remedy))
        value = (
            tensors[found.source] if found.value is None else torch.full(target.shape, found.value, dtype=target.dtype)
        )
        if found.how.startswith("tied to "):
            earlier = next((v for n, v in values.items() if targets[n] is target or _same(targets[n], target)), None)
            if earlier is not None and not _equal(earlier, value):
                where, remedy = f"{WHERE}: {found.target}", "The model ties two parameters that differ: untie them."
                raise QdeqValueError(expected(where, "equal tied values", "different ones", remedy))
        values[found.target] = value
    _write(targets, values)
    return values


@torch.no_grad()
def _write(targets: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    before = {name: targets[name].detach().clone() for name in values}
    begun: list[str] = []
    try:
        for name, value in values.items():
            begun.append(name)
            targets[name].detach().copy_(value)
    except BaseException as error:
        refused = isinstance(error, RuntimeError)  # an expanded tensor, one made in inference mode, no memory
        for name in begun[:-1] if refused else begun:
            targets[name].detach().copy_(before[name])
        if refused:
            what, reason = "a tensor that can be written to", str(error).splitlines()[0].rstrip(".")
            remedy = "Nothing was changed. Load into a model whose parameters have memory of their own."
            raise QdeqValueError(expected(f"{WHERE}: {begun[-1]}", what, f"{reason!r}", remedy)) from error
        raise


def _same(a: Tensor, b: Tensor) -> bool:
    return a.numel() > 0 and a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
