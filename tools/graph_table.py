"""Makes the tables of docs/models.md about graphs: torchvision's models by FX, and as TorchScript.

    python -m tools.graph_table [--scripts] [NAME ...]

By FX: every packed weight bit for bit; the float output beside that of the prepared model that holds torch's
dequantized weights; node by node, each fed with the int8 model's own inputs, how many values of the ``fake_quant``
graph are equal. Layers whose input goes beyond 7 bits are left out: CPUs without VNNI saturate there.
With --scripts: the same model traced, frozen and scripted, beside its rebuild by FX.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

import qdeq
from tools.graph_agreement import node_agreement
from tools.graphs import GRAPHS, SCRIPTS, Graph, quantized_graph
from tools.models import tq

__all__ = ["differing_weights", "with_int8_weights"]

_LEAST_SHARE = 0.999


def differing_weights(int8: nn.Module, rebuilt: nn.Module) -> list[str]:
    """Paths of the modules whose rebuilt weight has not the bits of ``weight().dequantize()``."""
    found = []
    for path, module in int8.named_modules():
        if callable(weight := getattr(module, "weight", None)):
            expected, actual = weight().dequantize(), rebuilt.get_submodule(path).weight
            same = torch.equal(expected.contiguous().view(torch.int32), actual.detach().contiguous().view(torch.int32))
            if not same:
                found.append(path)
    return found


def with_int8_weights(graph: Graph) -> fx.GraphModule:
    """The prepared model with torch's dequantized weights, observers off: what the float graph has to compute."""
    model = copy.deepcopy(graph.prepared).apply(tq.disable_observer)
    with torch.no_grad():
        for path, module in graph.int8.named_modules():
            if not callable(getattr(module, "weight", None)):
                continue
            target = model.get_submodule(path)
            target = target[0] if isinstance(target, nn.Sequential) else target
            target.weight.copy_(module.weight().dequantize())
            if target.bias is not None:
                target.bias.copy_(module.bias())
    return model


class _Wide(fx.Interpreter):
    """Finds the layers with weights whose quantized input goes beyond 127."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.found: list[str] = []

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        values = args[0]
        weighs = callable(getattr(self.module.get_submodule(target), "weight", None))
        if weighs and values.is_quantized and int(values.int_repr().max()) > 127:
            self.found.append(target.replace(".", "_"))
        return super().call_module(target, args, kwargs)


def _more_than_seven_bits(graph: Graph) -> list[str]:
    """Names of the nodes of such layers: other values than in calibration reach them."""
    wide = _Wide(graph.int8)
    with torch.no_grad():
        wide.run(graph.images)
    return wide.found


def distance(a: Tensor, b: Tensor) -> str:
    """How far two outputs are apart, in words."""
    if torch.equal(a, b):
        return "bit-equal"
    return f"{float((a - b).abs().max() / b.abs().max()):.1e}"


def fx_row(name: str) -> tuple[str, bool]:
    """One line of the table by FX, and whether all is as promised."""
    graph = quantized_graph(name)
    start = time.perf_counter()
    rebuilt = qdeq.dequantize_model(graph.int8)
    seconds = time.perf_counter() - start
    wrong = differing_weights(graph.int8, rebuilt)
    with torch.no_grad():
        output, expected = rebuilt(graph.images), with_int8_weights(graph)(graph.images)
    imitation, report = qdeq.dequantize_model(graph.int8, activations="fake_quant", return_report=True)
    nodes, full = node_agreement(graph.int8, imitation, graph.images), _more_than_seven_bits(graph)
    nodes = {name: node for name, node in nodes.items() if name not in full}
    share = sum(node.equal for node in nodes.values()) / sum(node.total for node in nodes.values())
    least, at = min((node.share, name) for name, node in nodes.items())
    cells = (name, len(graph.int8.graph.nodes), f"{len(wrong)} wrong", distance(output, expected), len(nodes))
    cells += (f"{100 * share:.4f} %", f"{100 * least:.2f} % ({at})", len(full))
    cells += (len(report.uncovered), f"{seconds:.2f} s")
    close = torch.allclose(output, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    # A node of a few hundred values has one flip allowed.
    right = all(node.share >= _LEAST_SHARE or node.total - node.equal <= 1 for node in nodes.values())
    return _line(cells), not wrong and close and right


def script_rows(name: str) -> tuple[str, bool]:
    """One line for each form of TorchScript, and whether all is as promised."""
    graph, lines, right = quantized_graph(name), [], True
    rebuilt = qdeq.dequantize_model(graph.int8)
    with torch.no_grad():
        expected = rebuilt(graph.images)
    for kind, make in SCRIPTS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.pt"
            try:
                torch.jit.save(make(graph.int8, graph.images), path)
            except Exception as error:  # noqa: BLE001 (torch cannot script every graph, and says so in many ways)
                lines.append(_line((name, kind, f"torch: {type(error).__name__}", "", "", "")))
                continue
            start = time.perf_counter()
            try:
                ours = qdeq.dequantize_model(path)
            except qdeq.QdeqError as error:
                lines.append(_line((name, kind, f"refused: {str(error)[:160]}", "", "", "")))
                right = False
                continue
            seconds = time.perf_counter() - start
        values = sorted(map(_bits, rebuilt.parameters()))
        same = values == sorted(map(_bits, ours.parameters()))
        names = sorted(dict(ours.named_parameters())) == sorted(dict(rebuilt.named_parameters()))
        with torch.no_grad():
            output = ours(graph.images)
        cells = (name, kind, "equal" if same else "differ", "same" if names else "others")
        lines.append(_line((*cells, distance(output, expected), f"{seconds:.2f} s")))
        right &= torch.allclose(output, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        right &= kind == "frozen" or (same and names)
    return "\n".join(lines), right


def _bits(value: Tensor) -> bytes:
    return value.detach().contiguous().view(-1).view(torch.int32).numpy().tobytes()


def _line(cells: tuple[object, ...]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> int:
    """Print the table; exit 1 where something is not as promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="architectures (all)")
    parser.add_argument("--scripts", action="store_true", help="traced, frozen and scripted instead")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    header = "| model | form | parameters | names | output, to the rebuild by FX | time |"
    if not arguments.scripts:
        header = "| model | nodes | weights | float output | roundings | equal | least | left out | uncovered | time |"
    print(header, "|---" * (header.count("|") - 1) + "|", sep="\n", flush=True)
    right = True
    for name in arguments.names or GRAPHS:
        line, good = script_rows(name) if arguments.scripts else fx_row(name)
        print(line, flush=True)
        right &= good
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
