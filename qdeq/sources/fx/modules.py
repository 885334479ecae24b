"""An int8 graph that runs its layers as modules, so that they can be found, run alone and hooked by their paths.

The graph computes the same: an operator with a packed weight becomes the call of torch's quantized module for it, which
holds that very packed weight, and a scale that the graph holds becomes a number.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.intrinsic.quantized.dynamic as nniqd
import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
from torch import fx, nn

from qdeq.layers.layer import Layer
from qdeq.sources.fx.front import converted_graphs, program_of
from qdeq.sources.graph.layers import Site, describe_operators, operator_sites
from qdeq.sources.graph.program import Program
from qdeq.sources.graph.schema import operator_of, read_call
from qdeq.sources.graph.targets import QUANTIZE, quantizing
from qdeq.tree.walk import children, shallow_copy

__all__ = ["with_modules"]

# (class of the float layer, activation, dynamic, a second input is added) -> torch's quantized class.
_CLASSES: dict[tuple[Any, Any, bool, bool], type[nn.Module]] = {
    (nn.Linear, None, False, False): nnq.Linear,
    (nn.Linear, nn.ReLU, False, False): nniq.LinearReLU,
    (nn.Linear, nn.LeakyReLU, False, False): nniq.LinearLeakyReLU,
    (nn.Linear, nn.Tanh, False, False): nniq.LinearTanh,
    (nn.Linear, None, True, False): nnqd.Linear,
    (nn.Linear, nn.ReLU, True, False): nniqd.LinearReLU,
    (nn.Conv1d, None, False, False): nnq.Conv1d,
    (nn.Conv2d, None, False, False): nnq.Conv2d,
    (nn.Conv3d, None, False, False): nnq.Conv3d,
    (nn.Conv1d, nn.ReLU, False, False): nniq.ConvReLU1d,
    (nn.Conv2d, nn.ReLU, False, False): nniq.ConvReLU2d,
    (nn.Conv3d, nn.ReLU, False, False): nniq.ConvReLU3d,
    (nn.Conv2d, None, False, True): nniq.ConvAdd2d,
    (nn.Conv2d, nn.ReLU, False, True): nniq.ConvAddReLU2d,
    (nn.ConvTranspose1d, None, False, False): nnq.ConvTranspose1d,
    (nn.ConvTranspose2d, None, False, False): nnq.ConvTranspose2d,
    (nn.ConvTranspose3d, None, False, False): nnq.ConvTranspose3d,
}


def with_modules(model: nn.Module) -> nn.Module:
    """The same model with every graph in it as this file says; what is no graph is shared with ``model``."""
    graphs = {id(module): module for _, module in converted_graphs(model)}
    return _replaced(model, graphs) if graphs else model


def _replaced(module: nn.Module, graphs: dict[int, fx.GraphModule]) -> nn.Module:
    inner = {name: _replaced(child, graphs) for name, child in children(module)}
    if id(module) in graphs:
        return _graph_with_modules(graphs[id(module)], inner)
    if all(inner[name] is child for name, child in children(module)):
        return module
    copied = shallow_copy(module)
    copied._modules.update(inner)
    return copied


def _graph_with_modules(module: fx.GraphModule, inner: dict[str, nn.Module]) -> nn.Module:
    program = program_of(module, unfuse=False)
    program.modules.update({name: inner[name] for name in program.modules if name in inner})
    layers = {layer.path: layer for layer in describe_operators(program, "", recover_direct_conv=True).layers}
    sites = operator_sites(program)
    calls = [site.path for site in sites.values()]
    for node, site in sites.items():
        kind = _CLASSES.get(
            (site.operator.kind, site.operator.activation, site.operator.dynamic, bool(site.operator.added))
        )
        if kind is not None and site.path in layers and calls.count(site.path) == 1:
            _call_module(node, site, _module(kind, layers[site.path], site, program), program)
    for node in program.graph.nodes:
        _write_numbers(node, program)
    program.graph.eliminate_dead_code(lambda node: node.op == "call_module" or node.is_impure())
    used = {str(node.target) for node in program.graph.nodes if node.op in ("get_attr", "call_module")}
    held = {name: value for name, value in (program.attributes | program.modules).items() if name in used}
    result = fx.GraphModule(held, program.graph)
    result.train(module.training)
    return result


def _module(kind: Any, layer: Layer, site: Site, program: Program) -> nn.Module:
    """Torch's quantized module around a packed weight, without the random one that its constructor packs."""
    module: nn.Module = kind.__new__(kind)
    nn.Module.__init__(module)
    packed = program.attributes[site.targets[0]]
    module.__dict__.update({name: value for name, value in layer.args.items() if name != "bias"})
    if site.operator.kind is nn.Linear:
        dtype = torch.float16 if site.operator.half else torch.qint8
        held = nnq.modules.linear.LinearPackedParams(dtype)  # type: ignore[no-untyped-call]
        held._packed_params = packed
        module._packed_params = held
    else:
        module.__dict__.update({"transposed": "output_padding" in layer.args, "padding_mode": "zeros"})
        module._packed_params = packed
    if layer.output is not None:
        module.__dict__.update({"scale": layer.output.scale, "zero_point": layer.output.zero_point})
    module.__dict__.update({} if layer.activation is None else layer.activation.args)
    return module


def _call_module(node: fx.Node, site: Site, module: nn.Module, program: Program) -> None:
    given = [site.call.arguments[name] for name in site.operator.inputs]
    given += [site.call.arguments[site.operator.added]] if site.operator.added else []
    node.op, node.target, node.args, node.kwargs = "call_module", site.path, tuple(given), {}
    program.modules[site.path] = module


def _write_numbers(node: fx.Node, program: Program) -> None:
    """Write the scales that a node asks the graph for into the node."""
    name, given = quantizing(node) or ("", {})
    qparams = [given["scale"], given["zero_point"]] if name == QUANTIZE else []
    if node.op == "call_function" and operator_of(node.target).startswith("quantized::"):
        call = read_call(node.target, node.args, node.kwargs)
        qparams = [] if call is None or call.qparams is None else list(call.qparams)
    numbers = {value: program.number(value) for value in qparams if isinstance(value, fx.Node)}

    def put(given: Any) -> Any:
        return given if numbers.get(given) is None else numbers[given]

    node.args, node.kwargs = fx.map_arg(node.args, put), fx.map_arg(node.kwargs, put)
