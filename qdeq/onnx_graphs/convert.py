"""A whole ONNX model to its float form: what goes in, what comes out, and that nothing was forgotten."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from qdeq.errors import refuse
from qdeq.onnx_graphs.order import names_read, needed, subgraphs
from qdeq.onnx_graphs.package import onnx_library
from qdeq.onnx_graphs.rewrite import Rewrite
from qdeq.onnx_graphs.scope import Rounded, Scope
from qdeq.onnx_graphs.stored import FLOATS, External
from qdeq.onnx_graphs.walk import HANDLERS, UNKNOWN, walk_graph
from qdeq.onnx_graphs.weights import FloatWeight
from qdeq.report import DroppedSource, Report, ReportEntry

__all__ = ["MODES", "FloatModel", "to_float"]

MODES = ("drop", "clamp", "fake_quant")


@dataclass(eq=False)
class FloatModel:
    """The float form of a model; its weights are still to be computed.

    Attributes:
        model: a ModelProto without the values of ``weights``: no initializer has their names.
        weights: name -> float weight.
        report: the account.
        quantized: whether anything in the model was quantized.
        where: file, for errors.
        external: reads values that lie in other files.

    """

    model: Any
    weights: dict[str, FloatWeight]
    report: Report
    quantized: bool
    where: str
    external: External

    def tensor(self, weight: FloatWeight) -> Any:
        """A TensorProto for a weight, without its values."""
        made = onnx_library().TensorProto()
        made.name = weight.name
        made.data_type = next(code for code, dtype in FLOATS.items() if dtype is weight.dtype)
        made.dims.extend(weight.shape)
        return made


def to_float(model: Any, where: str, external: External, mode: str = "drop") -> FloatModel:
    """Rewrite a model; nothing is computed yet, and the model itself stays as it is.

    Args:
        model: a ModelProto whose values may lie in other files.
        where: the file, for errors.
        external: reads those.
        mode: what becomes of the rounding of activations, one of :data:`MODES`.

    Raises:
        QdeqValueError: anything that cannot be rewritten; it names node and tensor.

    """
    model = _inlined(model, where)
    graph = model.graph
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if not opset:
        remedy = "The model is damaged: get a fresh copy."
        refuse(where, "the version of ONNX's operators", "none", remedy)
    rewrite = Rewrite(where, mode, opset, external, set(_names(graph)))
    scope = walk_graph(rewrite, graph, None, set())
    outputs, names = _outputs(scope, graph)
    made = _assemble(model, scope, outputs, names)
    _settle_names(rewrite, made.graph, names)
    kept = {tensor.name for tensor in made.graph.initializer}
    rewrite.gone += [tensor.name for tensor in graph.initializer if tensor.name not in kept]
    _account(rewrite)
    return FloatModel(made, rewrite.weights, rewrite.report, rewrite.quantized, where, external)


def _names(graph: Any) -> Iterator[str]:
    """Every name of a graph and those within it."""
    yield from (value.name for value in (*graph.input, *graph.output))
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        yield from (name for name in (*node.input, *node.output) if name)
        for inner in subgraphs(node):
            yield from _names(inner)


def _inlined(model: Any, where: str) -> Any:
    """The model with its functions put in place, if any of them holds a quantized operator."""
    quantized = {*HANDLERS, *(("com.microsoft", op) for op in UNKNOWN)}
    if not any(
        (node.domain.removeprefix("ai.onnx"), node.op_type) in quantized
        for function in model.functions
        for node in function.node
    ):
        return model
    try:
        return importlib.import_module("onnx.inliner").inline_local_functions(model)
    except Exception as error:  # noqa: BLE001  # the inliner's own errors have no class in common
        text = (str(error).splitlines() or [""])[0]
        refuse(f"{where}: functions", "functions that can be put in place", text, "The model is damaged.")


def _outputs(scope: Scope, graph: Any) -> tuple[list[Any], dict[str, str]]:
    """The graph's outputs; integers that a quantizer made become floats.

    Each keeps its name: the second result says which values of the new graph take it, and others get an Identity.
    """
    onnx, names = onnx_library(), dict[str, str]()
    results = []
    for output in graph.output:
        value, made = scope.value(output.name), onnx.ValueInfoProto()
        made.CopyFrom(output)
        if isinstance(value, Rounded):
            name = value.twin
            code = next(code for code, dtype in FLOATS.items() if dtype is value.q.scale.dtype)
            if value.q.dynamic:
                code = 1
            made.type.tensor_type.elem_type = code
            scope.rewrite.report.note(output.name, "this output of the model was quantized; it is float now")
        else:
            name = scope.plain(onnx.NodeProto(name=output.name, op_type="output"), output.name)
        if name != output.name and name in scope.producers and name not in {*names, *(o.name for o in graph.output)}:
            names[name] = output.name
        elif name != output.name:
            scope.emit("Identity", [name], output.name, f"{output.name}_Identity")
        results.append(made)
    return results, names


def _assemble(model: Any, scope: Scope, outputs: list[Any], names: dict[str, str]) -> Any:
    """The model around the new nodes: everything of the old one that is still read, or never was."""
    onnx, source, rewrite = onnx_library(), model.graph, scope.rewrite
    made = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name not in ("graph", "opset_import"):
            _copy_field(made, field.name, value)
    graph = made.graph
    graph.name, graph.doc_string = source.name, source.doc_string
    graph.output.extend(outputs)
    given_out = {output.name for output in outputs} | set(names)
    graph.node.extend(needed(scope.nodes, given_out))
    read = {name for node in graph.node for name in names_read(node)} | given_out
    was_read = {name for node in source.node for name in names_read(node)}
    kept = {t.name for t in source.initializer if t.name in read or t.name not in was_read}
    initializers = {tensor.name for tensor in source.initializer}
    graph.input.extend(value for value in source.input if value.name not in initializers or value.name in kept)
    graph.initializer.extend(tensor for tensor in source.initializer if tensor.name in kept)
    graph.initializer.extend(tensor for tensor in rewrite.constants if tensor.name in read)
    graph.sparse_initializer.extend(source.sparse_initializer)
    rewrite.weights = {name: weight for name, weight in rewrite.weights.items() if name in read}
    given = {name for node in graph.node for name in node.output}
    graph.value_info.extend(value for value in source.value_info if value.name in given)
    domains = {node.domain for node in _every_node(graph)} | {f.domain for f in model.functions}
    domains |= {node.domain for function in model.functions for node in function.node}
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") or entry.domain in domains:
            made.opset_import.add().CopyFrom(entry)
    return made


def _copy_field(made: Any, name: str, value: Any) -> None:
    if hasattr(value, "extend") or hasattr(value, "append"):
        getattr(made, name).extend(value)
    elif hasattr(value, "ListFields"):
        getattr(made, name).CopyFrom(value)
    else:
        setattr(made, name, value)


def _every_node(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from _every_node(inner)


def _settle_names(rewrite: Rewrite, graph: Any, names: dict[str, str]) -> None:
    """Give new values the names that ``names`` says, or that became free: those of the integers they stand for."""
    used = {*_names(graph), *rewrite.weights}
    for name, stem in rewrite.wishes.items():
        if name in used and name not in names:
            numbered = (f"{stem}_{number}" for number in itertools.count(1))
            names[name] = next(new for new in itertools.chain((stem,), numbered) if new == name or new not in used)
            used = (used - {name}) | {names[name]}
    for node in _every_node(graph):
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for inner in subgraphs(node):
            for output in inner.output:
                output.name = names.get(output.name, output.name)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    weights = (replace(w, name=names.get(w.name, w.name)) for w in rewrite.weights.values())
    rewrite.weights = {weight.name: weight for weight in weights}
    report = rewrite.report
    report.activation_qparams = {names.get(n, n): q for n, q in report.activation_qparams.items()}
    report.activation_dtypes = {names.get(n, n): d for n, d in report.activation_dtypes.items()}


def _account(rewrite: Rewrite) -> None:
    """Every weight that was written, and every initializer that went without becoming one."""
    report = rewrite.report
    for weight in rewrite.weights.values():
        span: dict[str, float] = {}
        for name, values in (("scale", weight.scale), ("zero_point", weight.zero_point)):
            if values.numel():
                span |= {f"{name}_min": float(values.min()), f"{name}_max": float(values.max())}
        entry = ReportEntry(
            weight.name, weight.source, "onnx", "onnx", weight.shape, weight.source_dtype, weight.qscheme,
            note=weight.note, **span,
        )  # fmt: skip
        report.entries.append(entry)
    sources = {weight.source for weight in rewrite.weights.values()}
    for name in rewrite.gone:
        if name not in sources:
            report.dropped.append(DroppedSource(name, "scale, zero point or shape of quantized values"))
