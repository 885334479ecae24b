"""Writes the tables of docs/onnx-export.md: int8 models of torch as ONNX files, and how ONNX Runtime runs them.

    python -m tools.onnx_export_table [--digits FOLDER] [--time ROUNDS] [NAME ...]

First table: integers, scales and zero points in the file against torch's own; the weights that ``dequantize_onnx``
reads back against ``dequantize_model``, as bits; what ONNX Runtime makes of the layers. Second: trained networks, int8
torch against int8 ONNX Runtime. Third: milliseconds of processor time for one image of 224 x 224 on one thread, the
least of ROUNDS rounds in which all take turns. FOLDER is what ``python -m qdeq.demo --save FOLDER`` wrote. Needs
torchvision and onnxruntime; run it from the root of the repository.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import qdeq
from tools.graphs import GRAPHS, quantized_graph
from tools.models import converted_model, engine, example, float_model, tq
from tools.networks import NETWORKS, Network
from tools.onnx_export import FLOAT_LAYERS, INTEGER_LAYERS, check, run, session

EAGER = ("resnet18", "mobilenet_v2", "mobilenet_v3_large", "googlenet", "shufflenet_v2_x1_0")
GRAPH = ("mobilenet_v2", "densenet121", "convnext_tiny", "efficientnet_b0", "vit_b_16")
TIMED = ("resnet18", "mobilenet_v2")
_OTHER_INTEGERS = ("QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearGlobalAveragePool", "QLinearAveragePool")


def models(names: list[str]) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Name, int8 model and example."""
    for name in EAGER:
        if not names or name in names:
            yield f"{name}, eager", converted_model(name), example(name)
    for name in GRAPH:
        if (not names or name in names) and name in GRAPHS:
            graph = quantized_graph(name)
            yield f"{name}, FX", graph.int8, graph.images
    for name, network in NETWORKS.items():
        if not names or name in names:
            yield f"{name} of tools/networks", int8_network(network), network.samples(2)[0]


def int8_network(network: Network) -> nn.Module:
    """A trained network, quantized; activations of 7 bits, so that no CPU saturates."""
    model = network.trained()
    with engine("fbgemm"), torch.no_grad():
        if not network.static:
            return tq.quantize_dynamic(model, {nn.Linear, nn.LSTM, nn.GRU}, dtype=torch.qint8)
        tq.fuse_modules(model, network.groups(model), inplace=True)
        activation = tq.HistogramObserver.with_args(reduce_range=True)
        model.qconfig = tq.QConfig(activation, tq.default_per_channel_weight_observer)
        for module in model.modules():
            if isinstance(module, nn.ConvTranspose2d):
                module.qconfig = tq.QConfig(activation, tq.default_weight_observer)
        prepared = tq.prepare(model)
        prepared(network.samples(128)[0])
        return tq.convert(prepared)


def file_row(name: str, int8: nn.Module, x: Tensor, path: Path) -> str:
    """One line of the first table."""
    report = qdeq.to_onnx(int8, x, path, force=True)
    found = check(int8, path, report)
    counts = session(path)[1]
    cells = [name, f"{found.same} of {found.weights}", f"{found.back} of {found.weights}"]
    cells += [_counted(counts, INTEGER_LAYERS), _counted(counts, (*FLOAT_LAYERS, "MatMulNBits"))]
    cells += [_counted(counts, _OTHER_INTEGERS), str(counts["DequantizeLinear"])]
    return "| " + " | ".join(cells) + " |"


def _counted(counts: Counter[str], ops: tuple[str, ...]) -> str:
    return ", ".join(f"{counts[op]} {op}" for op in ops if counts[op]) or "none"


def trained_row(name: str, int8: nn.Module, inputs: Tensor, labels: Tensor, step: float, path: Path) -> str:
    """One line of the second table."""
    qdeq.to_onnx(int8, inputs, path, force=True)
    runtime = session(path)[0]
    with torch.no_grad():
        expected = int8(inputs)
    actual = torch.from_numpy(run(runtime, inputs))
    cells = [name, str(len(labels))]
    cells += [f"{100 * (logits.argmax(1) == labels).double().mean():.2f} %" for logits in (expected, actual)]
    cells.append(f"{int((expected.argmax(1) == actual.argmax(1)).sum())}")
    cells.append(f"{100 * (expected == actual).double().mean():.2f} %")
    cells.append(f"{float((expected - actual).abs().max()) / step:.2f}" if step else "not rounded")
    return "| " + " | ".join(cells) + " |"


def trained_rows(folder: Path | None, path: Path) -> Iterator[str]:
    """The second table."""
    for name in ("vgg", "resnet", "mobilenet_v2", "mobilenet_v3"):
        int8 = int8_network(NETWORKS[name])
        linear = [module for module in int8.modules() if isinstance(module, torch.ao.nn.quantized.Linear)][-1]
        yield trained_row(name, int8, *NETWORKS[name].samples(256, seed=10**6), linear.scale, path)
    if folder is not None:
        from qdeq.demo.data import load_digits
        from qdeq.demo.model import VGG11, load_int8

        state = torch.load(folder / "int8.pt", weights_only=True)
        hidden = state["classifier.0._packed_params._packed_params"][0].shape[0]
        like = VGG11(512, hidden, batch_norm="features.3.weight" not in state)
        int8, images = load_int8(folder / "int8.pt", like), load_digits()[1]
        inputs, labels = images.batch(torch.arange(len(images)))
        linear = [module for module in int8.modules() if isinstance(module, torch.ao.nn.quantized.Linear)][-1]
        yield trained_row("digits VGG11", int8, inputs, labels, linear.scale, path)


def time_row(name: str, rounds: int, path: Path) -> str:
    """One line of the third table."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 224, 224)
    int8 = converted_model(name, num_classes=1000)
    plain = float_model(name, num_classes=1000)
    files = {"int8": path, "fp32": path.with_name("fp32.onnx")}
    qdeq.to_onnx(int8, x, path, force=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(plain, (x,), files["fp32"], dynamo=False, opset_version=17)
    runs: dict[str, Callable[[], object]] = {}
    for kind, file in files.items():
        runtime = session(file)[0]
        runs[f"ORT {kind}"] = lambda runtime=runtime: run(runtime, x)
    runs |= {"torch int8": lambda: int8(x), "torch fp32": lambda: plain(x)}
    best = dict.fromkeys(runs, float("inf"))
    with torch.no_grad():
        for _ in range(rounds):
            for what, call in runs.items():
                begin = time.process_time()
                call()
                best[what] = min(best[what], time.process_time() - begin)  # a busy machine takes turns
    sizes = [f"{file.stat().st_size / 1e6:.1f}" for file in files.values()]
    return "| " + " | ".join([name, *(f"{1000 * seconds:.1f}" for seconds in best.values()), *sizes]) + " |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--digits", type=Path)
    parser.add_argument("--time", type=int, default=0, metavar="ROUNDS")
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        print("| model | integers | round trip | int8 layers | float layers | other int8 | DequantizeLinear left |")
        print("|---|---|---|---|---|---|---|")
        for name, int8, x in models(options.names):
            print(file_row(name, int8, x, path), flush=True)
        if not options.names:
            print("\n| network | images | torch int8 | ORT int8 | same class | equal logits | steps apart |")
            print("|---|---|---|---|---|---|---|")
            for line in trained_rows(options.digits, path):
                print(line, flush=True)
        if options.time:
            print("\n| 224 x 224, ms | ORT int8 | ORT fp32 | torch int8 | torch fp32 | MB int8 | MB fp32 |")
            print("|---|---|---|---|---|---|---|")
            for name in TIMED:
                print(time_row(name, options.time, path), flush=True)


if __name__ == "__main__":
    main()
