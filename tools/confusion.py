"""Makes the confusion table of docs/explain.md: faults put into correct rebuilds, and what qdeq.explain calls them.

    python tools/confusion.py --cache /tmp/qdeq-confusion --out confusion.json

Subjects: VGG11 on scikit-learn's digits, the same with batch norm (fused), torchvision's resnet18 converted, each
trained briefly and once more from another seed, and a small network for what those three cannot show. The trained
weights are kept in the cache folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import qdeq
from qdeq.demo.data import load_digits
from qdeq.demo.model import VGG11
from qdeq.demo.vision import import_torchvision
from tests.helpers.mutations import MUTATIONS, NotApplicable, Subject, mutate, mutate_twice
from tests.helpers.small import small_subject

TRIALS = 20
PAIRS = [
    ("weight_not_copied", "bias_zeroed"),
    ("scale_missing", "activation_lost"),
    ("scale_mean", "weight_partly_copied"),
    ("channels_permuted", "bias_missing"),
    ("weights_swapped", "scale_divided"),
    ("bn_applied_twice", "weight_not_copied"),
]


def _train(model: nn.Module, seed: int) -> None:
    images, _ = load_digits()
    order = torch.Generator().manual_seed(seed)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-4)
    for inputs, labels in images.batches(64, order):
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def _float_model(name: str) -> nn.Module:
    if name == "resnet18":
        return import_torchvision().models.quantization.resnet18(num_classes=10)
    return VGG11(512, 512, batch_norm=name == "vgg11_bn")


def _convert(model: nn.Module, name: str) -> nn.Module:
    from torch.ao.quantization import convert, fuse_modules, get_default_qconfig, prepare

    images, _ = load_digits()
    if name == "resnet18":
        model.fuse_model(is_qat=False)
    elif name == "vgg11_bn":
        triples = [i for i, layer in enumerate(model.features) if isinstance(layer, nn.Conv2d)]
        model = fuse_modules(model, [[f"features.{i + k}" for k in range(3)] for i in triples])
        model = fuse_modules(model, [["classifier.0", "classifier.1"]])
    model.qconfig = get_default_qconfig("fbgemm")
    prepared = prepare(model)
    with torch.no_grad():
        prepared(images.batch(torch.arange(32))[0])
    return convert(prepared)


def _trained(name: str, seed: int, cache: Path) -> nn.Module:
    torch.manual_seed(seed)
    model = _float_model(name)
    file = cache / f"{name}-{seed}.pt"
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
    else:
        _train(model, seed)
        torch.save(model.state_dict(), file)
    return model.eval()


def subjects(cache: Path, names: list[str]) -> list[Subject]:
    """Train or load, convert and rebuild every subject."""
    cache.mkdir(parents=True, exist_ok=True)
    found = []
    for name in names:
        if name == "small":
            found.append(small_subject(0))
            continue
        models = [_convert(_trained(name, seed, cache), name) for seed in (1, 2)]
        rebuilt = [qdeq.dequantize_model(model) for model in models]
        found.append(Subject(name, models[0], rebuilt[0], rebuilt[1]))
    return found


def single_faults(subject: Subject, trials: int, kinds: list[str]) -> dict[str, Counter[str]]:
    """Kind -> what was named first, "right" meaning this kind at this module."""
    table: dict[str, Counter[str]] = {}
    for kind in kinds:
        named: Counter[str] = Counter()
        for seed in range(trials):
            try:
                mutant = mutate(kind, subject, seed)
            except NotApplicable:
                continue
            finding = qdeq.explain(mutant.int8, mutant.float_model).findings[0]
            right_module = finding.module in mutant.modules
            named[finding.kind if right_module else f"{finding.kind} elsewhere"] += 1
        if named:
            table[kind] = named
        _progress(subject, kind, named)
    return table


def double_faults(subject: Subject, trials: int) -> Counter[str]:
    """How often both of two faults were named at their modules."""
    named: Counter[str] = Counter()
    for kinds in PAIRS:
        for seed in range(trials):
            try:
                first, second = mutate_twice(kinds, subject, seed)
            except NotApplicable:
                continue
            found = {(item.kind, item.module) for item in qdeq.explain(second.int8, second.float_model).findings}
            hits = sum(any((m.kind, path) in found for path in m.modules) for m in (first, second))
            named["both" if hits == 2 else f"{'+'.join(kinds)}: {hits}"] += 1
    _progress(subject, "two faults", named)
    return named


def correct_rebuilds(subject: Subject, trials: int) -> Counter[str]:
    """Count what is found in a correct rebuild, with activations dropped, clamped and fake-quantized."""
    named: Counter[str] = Counter()
    for index in range(trials):
        mode = ("drop", "clamp", "fake_quant")[index % 3]
        model = qdeq.dequantize_model(subject.int8, activations=mode)
        explanation = qdeq.explain(subject.int8, model)
        faults = {item.kind for item in explanation.findings if item.is_fault}
        named[f"{mode}: {'agrees' if explanation.agrees else ', '.join(sorted(faults))}"] += 1
    _progress(subject, "correct", named)
    return named


def _progress(subject: Subject, what: str, named: Counter[str]) -> None:
    print(f"{subject.name:10} {what:24} {dict(named)}", flush=True)


def table(files: list[Path]) -> str:
    """Return the Markdown table of some result files; counts of the same subject and fault are added up."""
    single: dict[str, dict[str, Counter[str]]] = {}
    double: dict[str, Counter[str]] = {}
    correct: dict[str, Counter[str]] = {}
    for file in files:
        for name, result in json.loads(file.read_text())["subjects"].items():
            double.setdefault(name, Counter()).update(result["double"])
            correct.setdefault(name, Counter()).update(result["correct"])
            for kind, named in result["single"].items():
                single.setdefault(kind, {}).setdefault(name, Counter()).update(named)
    names = list(double)
    lines = ["| fault | " + " | ".join(names) + " | named otherwise |", "|---" * (len(names) + 2) + "|"]
    right = tried = 0
    for kind in MUTATIONS:
        row = single.get(kind, {})
        wrong: Counter[str] = Counter()
        cells = []
        for name in names:
            named = row.get(name, Counter())
            right, tried = right + named[kind], tried + sum(named.values())
            wrong.update({other: count for other, count in named.items() if other != kind})
            cells.append(f"{named[kind]} of {sum(named.values())}" if named else "")
        others = ", ".join(f"{other} {count}" for other, count in wrong.items())
        lines.append(f"| `{kind}` | " + " | ".join(cells) + f" | {others} |")
    both = [f"{double[name]['both']} of {sum(double[name].values())}" for name in names]
    lines.append("| two faults, both named | " + " | ".join(both) + " | |")
    agrees = []
    for name in names:
        good = sum(count for what, count in correct[name].items() if what.endswith("agrees"))
        agrees.append(f"{good} of {sum(correct[name].values())}")
    lines.append("| correct rebuild (drop, clamp, fake_quant) agrees | " + " | ".join(agrees) + " | |")
    pairs, rebuilds = (sum(sum(c.values()) for c in part.values()) for part in (double, correct))
    lines.append("")
    summary = f"{right} of {tried} single faults are named first, at the right module"
    lines.append(f"{summary}; {tried + pairs + rebuilds} trials in all.")
    return "\n".join(lines)


def main() -> int:
    """Run the trials; exit 1 if fewer are right than the project promises."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, nargs="+", help="print the table of these result files and stop")
    parser.add_argument("--cache", type=Path, default=Path("confusion-cache"), help="folder for the trained weights")
    parser.add_argument("--out", type=Path, help="write the counts as JSON")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--subjects", default="vgg11,vgg11_bn,resnet18,small")
    parser.add_argument("--parts", default="single,double,correct")
    parser.add_argument("--kinds", help="only these single faults")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.table))
        return 0
    kinds = arguments.kinds.split(",") if arguments.kinds else list(MUTATIONS)
    parts = arguments.parts.split(",")
    warnings.simplefilter("ignore")
    torch.backends.quantized.engine = "fbgemm"
    torch.set_num_threads(1)  # the layers are small, and several of these scripts may run side by side
    start, results = time.time(), {}
    for subject in subjects(arguments.cache, arguments.subjects.split(",")):
        results[subject.name] = {
            "single": single_faults(subject, arguments.trials, kinds) if "single" in parts else {},
            "double": double_faults(subject, arguments.trials) if "double" in parts else Counter(),
            "correct": correct_rebuilds(subject, 9) if "correct" in parts else Counter(),
        }
    single = Counter()
    for result in results.values():
        for kind, named in result["single"].items():
            single["right"] += named[kind]
            single["all"] += sum(named.values())
    double = sum((result["double"] for result in results.values()), Counter())
    correct = sum((result["correct"] for result in results.values()), Counter())
    agrees = sum(count for name, count in correct.items() if name.endswith("agrees"))
    totals = {
        "single faults": [single["right"], single["all"]],
        "two faults": [double["both"], sum(double.values())],
        "correct rebuilds": [agrees, sum(correct.values())],
        "seconds": round(time.time() - start),
    }
    print(totals)
    if arguments.out:
        arguments.out.write_text(json.dumps({"totals": totals, "subjects": results}, indent=1) + "\n")
    good = single["right"] >= 0.95 * single["all"] and double["both"] >= 0.9 * sum(double.values())
    return 0 if good and agrees == sum(correct.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
