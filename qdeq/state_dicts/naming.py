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
``P.weight`` + ``P.weight_scale`` ...         ``P.weight``, dequantized, if it is of plain integers
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

from torch import nn

from qdeq.layers.names import lstm_name
from qdeq.state_dicts.attention import keeps_projections, name_attentions
from qdeq.state_dicts.integers import plain_dtype, take_scaled
from qdeq.state_dicts.parts import Fold, Packed, Plan, ShapeOf, Target
from qdeq.state_dicts.records import COUNTER
from qdeq.state_dicts.rnn import RnnShape, rnn_shapes_of, take_rnns
from qdeq.words import join

__all__ = ["ACTIVATION_SCALE", "ACTIVATION_ZERO_POINT", "CONSTANTS", "plan_names"]

_REFERENCE = re.compile(r"(?P<weight>.*weight(_[ih]h.*)?)_(scale|zero_point|axis|axis_int|quant_min|quant_max)")
_OBSERVER = re.compile(r"(^|\.)(activation_post_process(_\d+)?|weight_fake_quant|fake_quant|observer)\.")
_ZERO_POINT = re.compile(r"(?P<before>.*(^|[._]))zero_point(?P<number>_\d+)?")
_OBSERVED = "an observer or fake quantization of the prepared model: its weights are the float ones"
_FOLDED = "batch norm folded in with eps 1e-5, the default: the file does not hold it"
_MAX_AVERAGES = 64  # models in one checkpoint: each is compared with all names
ACTIVATION_SCALE, ACTIVATION_ZERO_POINT = "activation_scale", "activation_zero_point"
"""What a file of qdeq's calls the quantization of a module's output, which torch calls ``scale`` and ``zero_point``."""
CONSTANTS = ("alpha", "negative_slope")
"""Attributes of activations that a model saved whole has; torch's state dicts never do."""


def plan_names(
    where: str,
    sources: Mapping[str, Any],
    shape_of: ShapeOf,
    like: nn.Module | None = None,
    rnn_shapes: Mapping[str, RnnShape] | None = None,
) -> Plan:
    """Give every source key its float names.

    Args:
        where: file or argument, for errors.
        sources: key -> tensor (of any kind), :class:`Packed`, :class:`Cell`, None, or a number of an activation.
        shape_of: shape of a tensor; None for what is no tensor.
        like: the float model, where it is known: it tells layers and directions of RNNs, which keys do not, and whether
            the projections of attentions keep their names.
        rnn_shapes: RNN path -> its layers and directions, where the source itself tells.

    Raises:
        QdeqValueError: two keys with one float name, or an RNN that the keys do not tell apart.

    """
    plan = Plan()
    rest = dict(sources)
    _take_activations(plan, rest, shape_of)
    take_rnns(where, plan, rest, shape_of, {**(rnn_shapes or {}), **rnn_shapes_of(like)})
    _take_folds(where, plan, rest)
    take_scaled(where, plan, rest, shape_of)
    _take_counters(plan, rest)
    fused = _fused_paths(rest)
    for key, value in rest.items():
        cell = re.fullmatch(r"(.*?)(?:weight|bias)_([ih]h)", key)
        if cell and isinstance(rest.get(f"{cell[1]}_packed_weight_{cell[2]}"), Packed):
            plan.dropped[key] = "repeated in the packed weight"
            continue
        if _OBSERVER.search(key):
            plan.dropped[key] = _OBSERVED
        elif _is_reference(key, rest):
            plan.dropped[key] = "of a reference module: its weight is the float one, before quantization"
        elif isinstance(value, Packed):
            _add_packed(where, plan, key, value)
        elif value is None:
            continue  # a layer without bias
        elif shape_of(value) is not None:
            plan.add(where, _float_name(key, fused), Target(value, key))
        elif key.rsplit(".", 1)[-1] in ("dtype", "qscheme", "ch_axis", "axis"):
            continue  # repeated in the tensors themselves
        elif key.rsplit(".", 1)[-1] in CONSTANTS and _is_number(value):
            plan.constants[key] = float(value)
        else:
            plan.dropped[key] = f"no tensor but a {type(value).__name__}"
    if not keeps_projections(like):
        name_attentions(plan, sources, shape_of)
    return plan


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _take_activations(plan: Plan, rest: dict[str, Any], shape_of: ShapeOf) -> None:
    def is_scalar(value: Any) -> bool:
        shape = shape_of(value)
        return _is_number(value) if shape is None else shape in ((), (1,))

    for key in list(rest):
        match = _ZERO_POINT.fullmatch(key)
        if match is None or _OBSERVER.search(key) or _REFERENCE.fullmatch(key):
            continue
        before, number = match["before"], match["number"] or ""
        scale_key = f"{before}scale{number}"
        if scale_key in rest and is_scalar(rest[key]) and is_scalar(rest[scale_key]):
            path = before[:-1] if before.endswith(".") and not number else before.rstrip("_") + number
            if key.rpartition(".")[2] == ACTIVATION_ZERO_POINT:
                path = key.rpartition(".")[0]
            plan.activations[path] = (rest.pop(scale_key), rest.pop(key))


def _is_reference(key: str, rest: Mapping[str, Any]) -> bool:
    """Whether a key is a reference module's note of how its float weight is to be quantized."""
    match = _REFERENCE.fullmatch(key)
    if match is None or match["weight"] not in rest or f"{match['weight']}_scale" not in rest:
        return False
    return not plain_dtype(rest[match["weight"]]).startswith(("int", "uint"))


def _take_counters(plan: Plan, rest: dict[str, Any]) -> None:
    """``n_averaged`` of an AveragedModel, all of whose other names begin with ``module.``."""
    for key in [key for key in rest if key.rpartition(".")[2] == "n_averaged"][:_MAX_AVERAGES]:
        path = key.removesuffix("n_averaged")
        if all(other == key or other.startswith(f"{path}module.") for other in rest if other.startswith(path)):
            del rest[key]
            plan.dropped[key] = COUNTER


def _take_folds(where: str, plan: Plan, rest: dict[str, Any]) -> None:
    """Fold the batch norm that a prepared ConvBn or LinearBn module holds as its child ``bn``."""
    for path in [key.removesuffix(".bn.running_var") for key in rest if key.endswith(".bn.running_var")]:
        prepared = any(key.startswith(f"{path}.weight_fake_quant.") for key in rest)
        weight, bias = f"{path}.weight", f"{path}.bias"
        norm = [f"{path}.bn.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        if not prepared or any(key not in rest for key in (weight, *norm)):
            continue
        values = (rest.pop(weight), rest.get(bias), *(rest[key] for key in norm))
        plan.add(where, weight, Target(Fold("weight", values), weight, _FOLDED))
        plan.add(where, bias, Target(Fold("bias", values), bias if bias in rest else norm[1], _FOLDED))
        rest.pop(bias, None)
        for key in (*norm, f"{path}.bn.num_batches_tracked"):
            if key in rest:
                del rest[key]
                plan.dropped[key] = f"folded into {weight}"


def _fused_paths(rest: Mapping[str, Any]) -> set[str]:
    """Paths of prepared fused modules (``P.0.weight`` with an observer on ``P`` itself): their layer is ``P``."""
    observed = {key[: m.start()] for key in rest if (m := re.search(r"\.activation_post_process\.", key))}
    return {path for path in observed if f"{path}.0.weight" in rest and f"{path}.weight" not in rest}


def _float_name(key: str, fused: set[str]) -> str:
    path, _, name = key.rpartition(".")
    owner, _, child = path.rpartition(".")
    if child == "_packed_params":
        return join(owner, "weight" if name == "_packed_weight" else name)
    if path.endswith(".0") and path[:-2] in fused:
        return f"{path[:-2]}.{name}"
    return lstm_name(key)


def _add_packed(where: str, plan: Plan, key: str, packed: Packed) -> None:
    path, _, name = key.rpartition(".")
    owner, _, child = path.rpartition(".")
    weight = "weight"
    if child == "_packed_params" and name in ("_packed_params", "_packed_weight"):
        path = owner
    elif name in ("_packed_weight_ih", "_packed_weight_hh"):
        weight = name.removeprefix("_packed_")
    elif name != "_packed_params":
        path = key  # an FX function call's weight, or a constant of a frozen script
    plan.add_packed(where, lstm_name(join(path, weight)), packed, key)
