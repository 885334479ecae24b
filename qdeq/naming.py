"""From the keys of a quantized checkpoint to the names of the float model it stands for.

Works on names and on what lies behind them, whatever that is: live tensors or tensors in a file. The keys are those
that torch's quantized modules write (``torch.ao.nn.quantized``, ``.dynamic``, ``.intrinsic``; FX; prepared models):

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
``P.activation_post_process.*``, fake quant   none: observers of a prepared model
============================================  ==========================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from qdeq.errors import QdeqValueError, expected

__all__ = ["Cell", "Fold", "Packed", "Plan", "RnnShape", "Target", "plan_names", "rnn_shapes_of"]


@dataclass(frozen=True, eq=False)
class Packed:
    """Weight and bias that one key holds; ``bias`` is None where the layer has none."""

    weight: Any
    bias: Any


@dataclass(frozen=True, eq=False)
class Cell:
    """The two packed linears of one layer and direction of an RNN."""

    ih: Packed
    hh: Packed


@dataclass(frozen=True, eq=False)
class Fold:
    """A convolution or linear whose batch norm is folded in: ``weight`` or ``bias`` of the result.

    ``parts``: weight, bias or None, and the batch norm's weight, bias, running mean and running variance.
    """

    part: str
    parts: tuple[Any, ...]


@dataclass(frozen=True)
class RnnShape:
    """What the keys of an RNN do not tell."""

    layers: int
    bidirectional: bool


@dataclass(frozen=True, eq=False)
class Target:
    """One tensor of the float model: its value as the source gave it, the source's key, and a remark."""

    value: Any
    source: str
    note: str = ""


@dataclass
class Plan:
    """Where everything goes.

    Attributes:
        targets: float name -> where it comes from.
        activations: module path -> (scale, zero point), as the source gave them.
        dropped: source key -> why it has no place in a float model.
        empty: source keys that hold None (a layer without bias).

    """

    targets: dict[str, Target] = field(default_factory=dict)
    activations: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)


def rnn_shapes_of(model: nn.Module | None) -> dict[str, RnnShape]:
    """Layers and directions of every RNN of a float model, by its path; nothing for None."""
    rnns = {} if model is None else {name: m for name, m in model.named_modules() if isinstance(m, nn.RNNBase)}
    return {name: RnnShape(m.num_layers, m.bidirectional) for name, m in rnns.items()}


_RNN = re.compile(r"(?P<path>.*?)(?P<dot>^|\.)_all_weight_values\.(?P<at>\d+)\.param")
_LSTM_LINEAR = re.compile(
    r"(?P<path>.*?)layers\.(?P<at>\d+)\.layer_(?P<way>fw|bw)\.cell\.(?P<gates>[ih]gates)\.(?P<name>weight|bias)"
)
_REFERENCE = re.compile(r"(?P<weight>.*weight(_[ih]h.*)?)_(scale|zero_point|axis|axis_int|quant_min|quant_max)")
_OBSERVER = re.compile(r"(^|\.)(activation_post_process(_\d+)?|weight_fake_quant|fake_quant|observer)\.")
_ZERO_POINT = re.compile(r"(?P<before>.*(^|[._]))zero_point(?P<number>_\d+)?")
_GUARD = re.compile(r"(^|\.)_guards?_\d+$")
_OBSERVED = "an observer or fake quantization of the prepared model: its weights are the float ones"
_SUFFIX = "._packed_params"


def plan_names(
    where: str,
    sources: Mapping[str, Any],
    shape_of: Callable[[Any], tuple[int, ...] | None],
    rnn_shapes: Mapping[str, RnnShape] | None = None,
) -> Plan:
    """Give every source key its float names.

    Args:
        where: file or argument, for errors.
        sources: key -> tensor (of any kind), :class:`Packed`, :class:`Cell`, None, or a number of an activation.
        shape_of: shape of a tensor; None for what is no tensor.
        rnn_shapes: RNN path -> its layers and directions, where they are known.

    Raises:
        QdeqValueError: two keys with one float name, or an RNN that the keys do not tell apart.

    """
    plan = Plan()
    rest = dict(sources)
    _take_activations(plan, rest, shape_of)
    _take_rnns(where, plan, rest, shape_of, rnn_shapes or {})
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
            plan.empty.append(key)
        elif shape_of(value) is not None:
            _add(where, plan, _float_name(key, fused), Target(value, key))
        elif key.rsplit(".", 1)[-1] in ("dtype", "qscheme", "ch_axis", "axis"):
            continue  # repeated in the tensors themselves
        else:
            plan.dropped[key] = f"no tensor but a {type(value).__name__}"
    return plan


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _add(where: str, plan: Plan, name: str, target: Target) -> None:
    if name in plan.targets:
        got = f"{plan.targets[name].source!a} and {target.source!a}"
        remedy = "The checkpoint holds two versions of one layer: remove one."
        raise QdeqValueError(expected(f"{where}: {name}", "one source", got, remedy))
    plan.targets[name] = target


def _take_activations(plan: Plan, rest: dict[str, Any], shape_of: Callable[[Any], tuple[int, ...] | None]) -> None:
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


def _take_rnns(
    where: str,
    plan: Plan,
    rest: dict[str, Any],
    shape_of: Callable[[Any], tuple[int, ...] | None],
    known: Mapping[str, RnnShape],
) -> None:
    rnns: dict[str, dict[int, str]] = {}
    for key, value in rest.items():
        match = _RNN.fullmatch(key)
        if match and isinstance(value, Cell):
            rnns.setdefault(match["path"], {})[int(match["at"])] = key
    for path, keys in rnns.items():
        if sorted(keys) != list(range(len(keys))):
            remedy = "The checkpoint is not complete."
            raise QdeqValueError(expected(f"{where}: {path}", "layers counted from 0", str(sorted(keys)), remedy))
        cells = [rest[keys[at]] for at in range(len(keys))]
        shape = known.get(path) or _rnn_shape(where, path, cells, shape_of)
        directions = 2 if shape.bidirectional else 1
        for at, cell in enumerate(cells):
            tail = f"_l{at // directions}" + ("_reverse" if at % directions else "")
            del rest[keys[at]]
            for part, packed in (("ih", cell.ih), ("hh", cell.hh)):
                _add(where, plan, _join(path, f"weight_{part}{tail}"), Target(packed.weight, keys[at]))
                if packed.bias is not None:
                    _add(where, plan, _join(path, f"bias_{part}{tail}"), Target(packed.bias, keys[at]))


def _rnn_shape(where: str, path: str, cells: list[Cell], shape_of: Callable[[Any], tuple[int, ...] | None]) -> RnnShape:
    """Tell layers and directions by the input sizes: a layer above a bidirectional one takes twice the hidden size."""
    sizes = [((shape_of(c.ih.weight) or (0, 0))[1], (shape_of(c.hh.weight) or (0, 0))[1]) for c in cells]
    count, (first, hidden) = len(sizes), sizes[0]
    inputs = [size for size, _ in sizes]
    forward = inputs[1:] == [hidden] * (count - 1)
    both = count % 2 == 0 and inputs[1] == first and inputs[2:] == [2 * hidden] * (count - 2)
    if forward and both:
        what = "keys that tell one bidirectional layer from two forward ones"
        got = f"input and hidden size {hidden} both"
        remedy = "Pass a float model that holds this RNN: dequantize_state_dict(into=...), qdeq.open(like=...)."
        raise QdeqValueError(expected(f"{where}: {path}", what, got, remedy))
    if not forward and not both:
        got = f"input sizes {inputs} with hidden size {hidden}"
        raise QdeqValueError(expected(f"{where}: {path}", "the layers of one RNN", got, "The file is damaged."))
    return RnnShape(count // 2 if both else count, both)


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
        _add(where, plan, weight, Target(Fold("weight", values), weight, note))
        _add(where, plan, bias, Target(Fold("bias", values), bias if bias in rest else parts[1], note))
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
        return _join(owner, {"_packed_weight": "weight"}.get(name, name))
    if path.endswith(".0") and path[:-2] in fused:
        return f"{path[:-2]}.{name}"
    return _lstm_name(key)


def _lstm_name(name: str) -> str:
    """Name the weights of the static LSTM, which is made of linears, as ``nn.LSTM`` does; other names stay."""
    match = _LSTM_LINEAR.fullmatch(name)
    if match is None:
        return name
    part = "ih" if match["gates"] == "igates" else "hh"
    reverse = "_reverse" if match["way"] == "bw" else ""
    return f"{match['path']}{match['name']}_{part}_l{match['at']}{reverse}"


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
    _add(where, plan, _lstm_name(_join(path, weight)), Target(packed.weight, key))
    if packed.bias is not None:
        _add(where, plan, _lstm_name(_join(path, bias)), Target(packed.bias, key))
