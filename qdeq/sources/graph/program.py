"""A quantized graph as data, whichever form it came in: what a front end hands to the rest of this room."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

__all__ = ["Packed", "Program"]


@dataclass(eq=False)
class Packed:
    """A packed weight taken apart, for sources that hold no live object.

    Attributes:
        kind: what packed it: "linear", "linear_dynamic", "linear_fp16", "conv", "embedding", or "cell" for one layer
            and direction of a recurrent network.
        weight: as a :class:`qdeq.layers.layer.Source` takes it; a transposed convolution's as torch.nn lays it out.
        bias: (rows of the weight,); None for none.
        stride: of a convolution, one number a dimension (a 1-d one may have a leading one for its height of 1).
        padding: likewise.
        dilation: likewise.
        output_padding: likewise.
        groups: of a convolution.
        transpose: it is a transposed convolution.
        engine: that runs it; empty where it cannot be told.
        parts: of a "cell": the packed Linears of the input and of the hidden state.
        held: dotted name under which the source holds it, for the account.

    """

    kind: str
    weight: Any = None
    bias: Any = None
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    groups: int = 1
    transpose: bool = False
    engine: str = ""
    parts: tuple[Packed, ...] = ()
    held: str = ""


@dataclass(eq=False)
class Program:
    """A quantized graph.

    Attributes:
        graph: as the source has it. Quantized operations are ``call_function`` nodes whose target is a packet or an
            overload of ``torch.ops.quantized``, or the string ``"quantized::NAME"`` where this torch has no such
            operator. ``torch.quantize_per_tensor`` and ``dequantize`` may be functions, methods or aten's operators.
            ``node.meta["path"]`` is the dotted path of the module whose forward runs the node (empty for the root, or
            where nobody knows it), ``node.meta["where"]`` how errors call the node.
        attributes: dotted name of a ``get_attr`` target -> tensor, ``nn.Parameter`` where it is one in the source,
            :class:`Packed`, a live packed object, a number.
        modules: dotted name of a ``call_module`` target -> module.
        training: the mode of the whole.

    """

    graph: fx.Graph
    attributes: dict[str, Any] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    training: bool = False

    def number(self, value: Any) -> float | int | None:
        """A scale or zero point: a number, or a ``get_attr`` node of one; None for one that the graph computes."""
        if isinstance(value, fx.Node):
            value = self.attributes.get(str(value.target)) if value.op == "get_attr" else None
        if isinstance(value, Tensor):
            return value.item() if value.numel() == 1 else None
        return value if isinstance(value, int | float) else None
