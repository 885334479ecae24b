"""Makes the confusion table of docs/explain.md: faults put into correct rebuilds, and what qdeq.explain calls them.

    python -m tools.confusion --workers 2 --cache /tmp/qdeq-confusion --out confusion.json

Subjects: VGG11 on scikit-learn's digits, the same with batch norm (fused), torchvision's resnet18 converted, each
trained briefly and once more from another seed, and a small network for what those three cannot show. The trained
weights are kept in the cache folder.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import torch
from torch import nn

import qdeq
from qdeq.demo.data import load_digits
from qdeq.demo.model import VGG11
from qdeq.demo.vision import import_torchvision
from tools.faults import MUTATIONS, NoPlaceError, Subject, mutate, mutate_twice
from tools.faults.small import small_subject

TRIALS = 20
SUBJECTS = ("vgg11", "vgg11_bn", "resnet18", "small")
PAIRS = (
    "weight_not_copied+bias_zeroed",
    "scale_missing+activation_lost",
    "scale_mean+weight_partly_copied",
    "channels_permuted+bias_missing",
    "weights_swapped+scale_divided",
    "bn_applied_twice+weight_not_copied",
    "quant_stub_lost+weight_of_other_layer",
)


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


@functools.cache
def subject(name: str, cache: Path) -> Subject:
    """Train or load, convert and rebuild a subject."""
    if name == "small":
        return small_subject(0)
    cache.mkdir(parents=True, exist_ok=True)
    models = [_convert(_trained(name, seed, cache), name) for seed in (1, 2)]
    rebuilt = [qdeq.dequantize_model(model) for model in models]
    images = load_digits()[0].batch(torch.arange(8))[0]
    return Subject(name, models[0], rebuilt[0], rebuilt[1], images)


def single_faults(subject: Subject, kind: str, trials: int) -> Counter[str]:
    """What was named first: the kind itself, if at the right module; "no place: why" where the fault cannot be."""
    named: Counter[str] = Counter()
    for seed in range(trials):
        try:
            mutant = mutate(kind, subject, seed)
        except NoPlaceError as error:
            named[f"no place: {error}"] += 1
            continue
        explanation = qdeq.explain(mutant.int8, mutant.float_model, mutant.data)
        # A layer that clips gives its successor the largest integers there are: where that saturates, it is said first.
        findings = [item for item in explanation.findings if kind == "saturation" or item.kind != "saturation"]
        right = findings[0].module in mutant.modules and (kind == "clipping" or not explanation.agrees)
        named[findings[0].kind if right else f"{findings[0].kind} elsewhere"] += 1
    return named


def double_faults(subject: Subject, pair: str, trials: int) -> Counter[str]:
    """How often both of two faults were named at their modules."""
    named: Counter[str] = Counter()
    for seed in range(trials):
        try:
            first, second = mutate_twice(tuple(pair.split("+")), subject, seed)
        except NoPlaceError as error:
            named[f"no place: {error}"] += 1
            continue
        found = {(item.kind, item.module) for item in qdeq.explain(second.int8, second.float_model).findings}
        hits = sum(any((m.kind, path) in found for path in m.modules) for m in (first, second))
        named["both" if hits == 2 else f"{pair}: {hits}"] += 1
    return named


def correct_rebuilds(subject: Subject, mode: str, trials: int) -> Counter[str]:
    """Count what is found in a correct rebuild, with data in every second trial."""
    named: Counter[str] = Counter()
    for seed in range(trials):
        model = qdeq.dequantize_model(subject.int8, activations=mode)
        explanation = qdeq.explain(subject.int8, model, subject.images if seed % 2 else None)
        faults = {item.kind for item in explanation.findings if item.is_fault}
        named["agrees" if explanation.agrees else ", ".join(sorted(faults))] += 1
    return named


_PARTS = {"single": single_faults, "double": double_faults, "correct": correct_rebuilds}


def _run(task: tuple[str, str, str], cache: Path, trials: int) -> Counter[str]:
    name, part, what = task
    warnings.simplefilter("ignore")
    torch.backends.quantized.engine = "fbgemm"
    torch.set_num_threads(1)  # the layers are small, and the workers run side by side
    return _PARTS[part](subject(name, cache), what, trials if part != "correct" else max(1, trials // 5))


def _places(named: Counter[str]) -> Counter[str]:
    """Leave out the trials for which the network had no place."""
    return Counter({what: count for what, count in named.items() if not what.startswith("no place: ")})


def table(results: dict[str, dict[str, dict[str, Counter[str]]]]) -> str:
    """Return the Markdown table of results: subject -> part -> fault -> what was named."""
    lines = ["| fault | " + " | ".join(results) + " | named otherwise |", "|---" * (len(results) + 2) + "|"]
    notes: dict[str, str] = {}
    for kind in MUTATIONS:
        cells, wrong = [], Counter()
        for parts in results.values():
            named = parts["single"].get(kind, Counter())
            tried = _places(named)
            reason = next((what for what in named if what not in tried), "")
            if reason and not tried:
                notes.setdefault(reason.removeprefix("no place: "), chr(ord("a") + len(notes)))
                cells.append(f"({notes[reason.removeprefix('no place: ')]})")
                continue
            cells.append(f"{tried[kind]} of {tried.total()}")
            wrong.update({other: count for other, count in tried.items() if other != kind})
        lines.append(f"| `{kind}` | {' | '.join(cells)} | {', '.join(f'{k} {n}' for k, n in wrong.items())} |")
    for part, right, title in (
        ("double", "both", "two faults, both named"),
        ("correct", "agrees", "correct rebuild (drop, clamp, fake_quant): agrees"),
    ):
        sums = [_places(sum(parts[part].values(), Counter())) for parts in results.values()]
        wrong = sum(sums, Counter())
        del wrong[right]
        cells = [f"{named[right]} of {named.total()}" for named in sums]
        lines.append(f"| {title} | {' | '.join(cells)} | {', '.join(f'{k} {n}' for k, n in wrong.items())} |")
    lines += ["", *(f"({letter}) no place for it: {reason}." for reason, letter in notes.items())]
    return "\n".join(lines)


def totals(results: dict[str, dict[str, dict[str, Counter[str]]]]) -> dict[str, list[int]]:
    """Part -> [right, tried]."""
    found = {}
    for part in _PARTS:
        right = tried = 0
        for parts in results.values():
            for what, named in parts[part].items():
                right += named[{"single": what, "double": "both", "correct": "agrees"}[part]]
                tried += _places(named).total()
        found[part] = [right, tried]
    return found


def main() -> int:
    """Run the trials; exit 1 if fewer are right than the project promises."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("confusion-cache"), help="folder for the trained weights")
    parser.add_argument("--out", type=Path, help="write the counts as JSON")
    parser.add_argument("--trials", type=int, default=TRIALS, help="trials of each fault on each subject")
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--subjects", default=",".join(SUBJECTS))
    parser.add_argument("--kinds", default=",".join(MUTATIONS), help="these single faults")
    parser.add_argument("--parts", default=",".join(_PARTS))
    arguments = parser.parse_args()
    names = arguments.subjects.split(",")
    whats = {"single": arguments.kinds.split(","), "double": PAIRS, "correct": ("drop", "clamp", "fake_quant")}
    tasks = [(name, part, what) for name in names for part in arguments.parts.split(",") for what in whats[part]]
    start = time.time()
    results: dict = {name: {part: {} for part in _PARTS} for name in names}
    with ProcessPoolExecutor(arguments.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = pool.map(_run, tasks, repeat(arguments.cache), repeat(arguments.trials))
        for (name, part, what), named in zip(tasks, jobs, strict=True):
            results[name][part][what] = named
            print(f"{time.time() - start:6.0f} s  {name:10} {part:8} {what:40} {dict(named)}", flush=True)
    sums = totals(results)
    print(f"\n{table(results)}\n")
    print(", ".join(f"{part}: {right} of {tried}" for part, (right, tried) in sums.items()), end="; ")
    print(f"{sum(tried for _, tried in sums.values())} trials in {time.time() - start:.0f} s")
    if arguments.out:
        arguments.out.write_text(json.dumps({"totals": sums, "subjects": results}, indent=1) + "\n")
    (single, singles), (double, doubles), (correct, corrects) = sums.values()
    return 0 if single >= 0.95 * singles and double >= 0.9 * doubles and correct == corrects else 1


if __name__ == "__main__":
    sys.exit(main())
