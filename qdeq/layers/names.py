"""Names of parameters of torch.nn's RNNs and attention, and of the parts that torch's quantized classes have instead.

The quantized LSTM holds Linears: for each layer and direction a cell with ``igates`` and ``hgates``, joined or one per
gate, which ``nn.LSTM`` keeps below each other as ``weight_ih_l0``, ``weight_hh_l0_reverse``, ... The quantized
attention holds ``linear_Q``, ``linear_K`` and ``linear_V``, where ``nn.MultiheadAttention`` holds ``in_proj_weight``
(3 * embed_dim, embed_dim) if keys and values have the width of queries, else ``q_proj_weight``, ``k_proj_weight`` and
``v_proj_weight``; and ``in_proj_bias`` (3 * embed_dim,) either way.
"""

from __future__ import annotations

import re

__all__ = [
    "GATES",
    "GATE_PARTS",
    "PROJECTIONS",
    "UNUSED_PROJECTIONS",
    "UNUSED_PROJECTIONS_REASON",
    "bias_name",
    "is_inner_weight",
    "lstm_cells",
    "lstm_name",
    "projection_weights",
    "rnn_suffixes",
]

GATES = ("input", "forget", "cell", "output")
"""Gates of an LSTM in the order in which ``nn.LSTM`` stacks their rows."""

GATE_PARTS = {"igates": "ih", "hgates": "hh"}
"""The Linears of a quantized LSTM's cell -> what follows ``weight_`` and ``bias_`` in the names of ``nn.LSTM``."""

PROJECTIONS = ("linear_Q", "linear_K", "linear_V")
"""The Linears of a quantized attention, in the order in which ``in_proj_weight`` and ``in_proj_bias`` stack them."""

UNUSED_PROJECTIONS = ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""What a quantized or prepared attention inherits from the float class and never computes with."""

UNUSED_PROJECTIONS_REASON = "never used: linear_Q, linear_K and linear_V hold the projections"

_DIRECTIONS = {"layer_fw": "", "layer_bw": "_reverse"}
_CELL_LINEAR = re.compile(
    r"(?P<path>.*?)layers\.(?P<at>\d+)\.(?P<way>layer_fw|layer_bw)\.cell\.(?P<gates>[ih]gates)\.(?P<name>weight|bias)"
)
_INNER_WEIGHT = re.compile(r"weight_[ih]h(_l\d+(_reverse)?)?|in_proj_weight|[qkv]_proj_weight")


def rnn_suffixes(num_layers: int, bidirectional: bool) -> list[str]:
    """What the parameter names of each layer and direction end with, in torch's order: ``l0``, ``l0_reverse``, ..."""
    ways = list(_DIRECTIONS.values()) if bidirectional else [""]
    return [f"l{layer}{way}" for layer in range(num_layers) for way in ways]


def lstm_cells(num_layers: int, bidirectional: bool) -> list[str]:
    """Paths of the cells in a quantized LSTM, one for each of :func:`rnn_suffixes`: ``layers.0.layer_fw.cell``, ..."""
    ways = list(_DIRECTIONS) if bidirectional else ["layer_fw"]
    return [f"layers.{layer}.{way}.cell" for layer in range(num_layers) for way in ways]


def lstm_name(name: str) -> str:
    """Name a weight or bias of a quantized LSTM's Linears as ``nn.LSTM`` does; other names stay."""
    match = _CELL_LINEAR.fullmatch(name)
    if match is None:
        return name
    suffix = f"l{match['at']}{_DIRECTIONS[match['way']]}"
    return f"{match['path']}{match['name']}_{GATE_PARTS[match['gates']]}_{suffix}"


def projection_weights(*, one_width: bool) -> tuple[str, str, str]:
    """The name that each of :data:`PROJECTIONS` has as a weight of ``nn.MultiheadAttention``.

    Args:
        one_width: queries, keys and values are equally wide: then all three are one parameter.

    """
    return ("in_proj_weight",) * 3 if one_width else ("q_proj_weight", "k_proj_weight", "v_proj_weight")


def is_inner_weight(name: str) -> bool:
    """Whether torch's modules of several weights (RNNs, cells, attention) call one of them so."""
    return _INNER_WEIGHT.fullmatch(name) is not None


def bias_name(weight: str) -> str:
    """The name of the bias that belongs to a weight: ``bias``, ``bias_ih_l0``, ``in_proj_bias``, ..."""
    return weight.replace("weight", "bias")
