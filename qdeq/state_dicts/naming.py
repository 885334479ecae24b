"""From the keys of a quantized checkpoint to the names of the float model it stands for.

Works on names and on what lies behind them, whatever that is: live tensors or tensors in a file. The keys are those
that torch's quantized modules write (static, dynamic, fused; FX; prepared models):

============================================  ==========================================================
key                                           float name
============================================  ==========================================================
``P.weight``, ``P.bias``                      the same (conv, norms, float layers, linear version 1)
``P._packed_params.weight`` / ``.bias``       ``P.weight`` / ``P.bias`` (linear version 2)
``P._packed_params._packed_params``           ``P.weight``, ``P.bias`` (linear version 3: a pair)
``P._packed_params._packed_weight``           ``P.weight`` (embedding)
``P._packed_params``                          ``P.weight``, ``P.bias`` (conv as a script object)
``P._packed_weight_N``                        ``P._packed_weight_N.weight``, ``.bias`` (FX function call)
``P._all_weight_values.N.param``              ``P.weight_ih_l0``, ``P.bias_hh_l1_reverse``, ...
``P._packed_weight_ih`` / ``_hh``             ``P.weight_ih``, ``P.bias_ih``, ... (RNN cells)
``P.scale`` + ``P.zero_point``, ``_scale_N``  none: the quantization of an activation
``P.layers.N.layer_fw.cell.igates`` (+ above)  ``P.weight_ih_lN``, ... (static LSTM)
``P.linear_Q``, ``_K``, ``_V`` (+ above)      ``P.in_proj_weight``, ``P.q_proj_weight``, ... (attention)
``P.alpha``, ``P.negative_slope``             none: constants of an activation (a model saved whole)
``P.activation_post_process.*``, fake quant   none: observers of a prepared model
============================================  ==========================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qdeq.layers.names import lstm_name
from qdeq.state_dicts.attention import name_attentions
from qdeq.state_dicts.parts import Fold, Packed, Plan, ShapeOf, Target, add_target
from qdeq.state_dicts.rnn import RnnShape, take_rnns
from qdeq.words import join

__all__ = ["CONSTANTS", "plan_names"]

_REFERENCE = re.compile(r"(?P<weight>.*weight(_[ih]h.*)?)_(scale|zero_point|axis|axis_int|quant_min|quant_max)")
_OBSERVER = re.compile(r"(^|\.)(activation_post_process(_\d+)?|weight_fake_quant|fake_quant|observer)\.")
_ZERO_POINT = re.compile(r"(?P<before>.*(^|[._]))zero_point(?P<number>_\d+)?")
_OBSERVED = "an observer or fake quantization of the prepared model: its weights are the float ones"
_SUFFIX = "._packed_params"
CONSTANTS = ("alpha", "negative_slope")
"""Attributes of activations that a model saved whole has; torch's state dicts never do."""


def plan_names(
    where: str,
    sources: Mapping[str, Any],
    shape_of: ShapeOf,
    rnn_shapes: Mapping[str, RnnShape] | None = None,
    *,
    attentions: bool = True,
) -> Plan:
    """Give every source key its float names.

    Args:
        where: file or argument, for errors.
        sources: key -> tensor (of any kind), :class:`Packed`, :class:`Cell`, None, or a number of an activation.
        shape_of: shape of a tensor; None for what is no tensor.
        rnn_shapes: RNN path -> its layers and directions, where they are known.
        attentions: give the projections of multi-head attention the names of ``nn.MultiheadAttention``.

    Raises:
        QdeqValueError: two keys with one float name, or an RNN that the keys do not tell apart.

    """
    plan = Plan()
    rest = dict(sources)
    _take_activations(plan, rest, shape_of)
    take_rnns(where, plan, rest, shape_of, rnn_shapes or {})
    folded = _take_folds(where, plan, rest)
    fused = _fused_paths(rest)
    for key, value in rest.items():
        if key in folded:
            continue
        cell = re.fullmatch(r"(.*?)(?:weight|bias)_([ih]h)", key)
        if cell and isinstance(rest.get(f"{cell[1]}_packed_weight_{cell[2]}"), Packed):
            plan.dropped[key] = "repeated in the packed weight"
            continue
        if _OBSERVER.search(key):
            plan.dropped[key] = _OBSERVED
        elif (match := _REFERENCE.fullmatch(key)) and match["weight"] in rest and f"{match['weight']}_scale" in rest:
            plan.dropped[key] = "of a reference module: its weight is the float one, before quantization"
        elif isinstance(value, Packed):
            _add_packed(where, plan, key, value)
        elif value is None:
            continue  # a layer without bias
        elif shape_of(value) is not None:
            add_target(where, plan, _float_name(key, fused), Target(value, key))
        elif key.rsplit(".", 1)[-1] in ("dtype", "qscheme", "ch_axis", "axis"):
            continue  # repeated in the tensors themselves
        elif key.rsplit(".", 1)[-1] in CONSTANTS and isinstance(value, int | float) and not isinstance(value, bool):
            plan.constants[key] = float(value)
        else:
            plan.dropped[key] = f"no tensor but a {type(value).__name__}"
    if attentions:
        name_attentions(plan, sources, shape_of)
    return plan


def _take_activations(plan: Plan, rest: dict[str, Any], shape_of: ShapeOf) -> None:
    def is_scalar(value: Any) -> bool:
        shape = shape_of(value)
        if shape is None:
            return isinstance(value, int | float) and not isinstance(value, bool)
        return shape in ((), (1,))

    for key in list(rest):
        match = _ZERO_POINT.fullmatch(key)
        if match is None or _OBSERVER.search(key) or key.endswith(("weight_zero_point", "_hh_zero_point")):
            continue
        scale_key = match["before"] + "scale" + (match["number"] or "")
        if scale_key not in rest or not is_scalar(rest[key]) or not is_scalar(rest[scale_key]):
            continue
        before, number = match["before"], match["number"] or ""
        path = before[:-1] if before.endswith(".") and not number else before.rstrip("_") + number
        plan.activations[path] = (rest.pop(scale_key), rest.pop(key))


_BN_PARTS = ("weight", "bias", "running_mean", "running_var")


def _take_folds(where: str, plan: Plan, rest: dict[str, Any]) -> set[str]:
    """Fold the batch norm that a prepared ConvBn or LinearBn module holds as its child ``bn``."""
    folded: set[str] = set()
    for key in list(rest):
        if not key.endswith(".bn.running_var"):
            continue
        path = key.removesuffix(".bn.running_var")
        prepared = any(k.startswith(f"{path}.weight_fake_quant.") for k in rest)
        weight, bias = f"{path}.weight", f"{path}.bias"
        parts = [f"{path}.bn.{part}" for part in _BN_PARTS]
        if not prepared or weight not in rest or not all(part in rest for part in parts):
            continue
        values = (rest[weight], rest.get(bias), *(rest[part] for part in parts))
        note = "batch norm folded in with eps 1e-5, the default: the file does not hold it"
        add_target(where, plan, weight, Target(Fold("weight", values), weight, note))
        add_target(where, plan, bias, Target(Fold("bias", values), bias if bias in rest else parts[1], note))
        folded |= {weight, bias, *parts, f"{path}.bn.num_batches_tracked"}
        for part in (*parts, f"{path}.bn.num_batches_tracked"):
            if part in rest:
                plan.dropped[part] = f"folded into {weight}"
    return folded


def _fused_paths(rest: Mapping[str, Any]) -> set[str]:
    """Paths of prepared fused modules (``P.0.weight`` with an observer on ``P`` itself): their layer is ``P``."""
    observed = {key[: m.start()] for key in rest if (m := re.search(r"\.activation_post_process\.", key))}
    return {path for path in observed if f"{path}.0.weight" in rest and f"{path}.weight" not in rest}


def _float_name(key: str, fused: set[str]) -> str:
    path, _, name = key.rpartition(".")
    if path.endswith(_SUFFIX) or path == "_packed_params":
        owner = path[: -len(_SUFFIX)] if path.endswith(_SUFFIX) else ""
        return join(owner, {"_packed_weight": "weight"}.get(name, name))
    if path.endswith(".0") and path[:-2] in fused:
        return f"{path[:-2]}.{name}"
    return lstm_name(key)


def _add_packed(where: str, plan: Plan, key: str, packed: Packed) -> None:
    path, _, name = key.rpartition(".")
    weight, bias = "weight", "bias"
    if (name == "_packed_params" and (path.endswith(_SUFFIX) or path == "_packed_params")) or (
        name == "_packed_weight" and (path.endswith(_SUFFIX) or path == "_packed_params")
    ):
        path = path[: -len(_SUFFIX)] if path.endswith(_SUFFIX) else ""
    elif name.startswith("_packed_weight_") and name[15:] in ("ih", "hh"):
        weight, bias = f"weight_{name[15:]}", f"bias_{name[15:]}"
    elif name != "_packed_params":
        path = key  # an FX function call's weight, or a constant of a frozen script
    add_target(where, plan, lstm_name(join(path, weight)), Target(packed.weight, key))
    if packed.bias is not None:
        add_target(where, plan, lstm_name(join(path, bias)), Target(packed.bias, key))
