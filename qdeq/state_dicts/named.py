"""The layers of a state dict or an opened file: each tensor with its module, its bias and the scale of its output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qdeq.layers.names import bias_name
from qdeq.state_dicts.live import plan_state
from qdeq.state_dicts.values import value_of
from qdeq.weights.weight import QuantizedWeight
from qdeq.words import join

__all__ = ["NamedTensor", "named_tensors"]


@dataclass(frozen=True, eq=False)
class NamedTensor:
    """A parameter or buffer of the float model that a state dict stands for.

    Attributes:
        path: dotted path of its module.
        parameter: its name there.
        value: what it was saved as; parts that the float model keeps as one are put together.
        bias: the bias that belongs to it, if it is a weight and has one.
        output: scale and zero point of its module's quantized output; None where there is none.

    """

    path: str
    parameter: str
    value: QuantizedWeight | Tensor
    bias: Tensor | None
    output: tuple[float, int] | None

    @property
    def name(self) -> str:
        """Its dotted name."""
        return join(self.path, self.parameter)

    @property
    def bias_name(self) -> str:
        """The dotted name that its bias has, or would have."""
        return join(self.path, bias_name(self.parameter))


def named_tensors(where: str, sd: Mapping[str, Any]) -> Iterator[NamedTensor]:
    """Read a state dict or an opened file, one float name after the other; tensors are not copied where that can be.

    Args:
        where: argument, for errors.
        sd: as for :func:`~qdeq.state_dicts.live.plan_state`.

    Raises:
        QdeqError: keys that cannot be understood, or a damaged tensor.

    """
    plan = plan_state(where, sd)
    for name, target in plan.targets.items():
        path, _, parameter = name.rpartition(".")
        bias = plan.targets.get(join(path, bias_name(parameter))) if "weight" in parameter else None
        shift = None if bias is None else value_of(f"{where}: {bias.source}", bias.value)
        qparams = plan.activations.get(path)
        yield NamedTensor(
            path,
            parameter,
            value_of(f"{where}: {target.source}", target.value),
            shift.detach() if isinstance(shift, Tensor) else None,
            None if qparams is None else (float(qparams[0]), int(qparams[1])),
        )
