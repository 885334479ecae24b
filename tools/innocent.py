"""Makes the table of correct pairs in docs/explain.md: two forms of one model, in which explain must find no fault.

    python -m tools.innocent --out innocent.json
    python -m tools.innocent --data

The networks of tools/networks, trained on synthetic data, are quantized by its recipes. Each int8 model is given as a
module, a state dict, a file of either, and each model of the same weights as a module, a state dict and a file. With
--data the modules are also run; outputs that part may then be said to part, but no layer may be accused of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import qdeq
from tools.networks import NETWORKS
from tools.networks.recipes import ENGINES, Quantized, Recipe, recipes

__all__ = ["judged", "pairs_of"]

# Findings about the int8 arithmetic of this CPU, and about outputs alone: no layer's weights are to blame for them.
_OF_THE_CPU = {"saturation", "int8_kernel_wrong", "outputs_part"}
# Outputs of which less have the same largest value do not agree.
_LEAST_AGREEMENT = 0.95


def pairs_of(made: Quantized, folder: Path) -> Iterator[tuple[str, Any, Any]]:
    """(name, int8 side, float side) of each pair of forms; files are written to the folder."""
    ours: dict[str, Any] = {"module": made.int8, "state dict": made.int8.state_dict()}
    torch.save(made.int8.state_dict(), folder / "int8.pth")
    torch.save(made.int8, folder / "whole.pt")
    ours |= {"file": folder / "int8.pth", "whole file": folder / "whole.pt"}
    hidden = _hides_weights(made.int8)
    rebuilt = qdeq.dequantize_model(made.int8)
    for number, (name, model) in enumerate({**made.floats, "own rebuild": rebuilt}.items()):
        theirs: dict[str, Any] = {"module": model, "state dict": model.state_dict()}
        theirs["file"] = folder / f"float{number}.pth"
        torch.save(model.state_dict(), theirs["file"])
        for a, b in _FORMS:
            if not (hidden and a == "state dict"):
                yield f"{a}, {b} of {name}", ours[a], theirs[b]


_FORMS = (
    ("module", "module"),
    ("module", "state dict"),
    ("state dict", "module"),
    ("file", "file"),
    ("file", "module"),
    ("whole file", "module"),
    ("whole file", "file"),
)


def _runs(made: Quantized) -> bool:
    """Whether torch runs the int8 model at all: qnnpack takes no qint8 activations."""
    try:
        with torch.no_grad():
            made.int8(made.inputs)
    except RuntimeError:
        return False
    return True


def _hides_weights(int8: nn.Module) -> bool:
    """Whether a state dict holds packed weights that only a file or the module shows."""
    return any(isinstance(value, torch.ScriptObject) for value in int8.state_dict().values())


def judged(name: str, make: Recipe, *, run: bool = False) -> dict[str, list[str]]:
    """Pair -> what explain holds against it, worded; nothing where it is right. ``run``: pairs of modules, on data."""
    made, found = make(), {}
    torch.backends.quantized.engine = name.split("/")[1]
    if run and not _runs(made):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        for pair, ours, theirs in pairs_of(made, Path(folder)):
            if run and not (isinstance(ours, nn.Module) and isinstance(theirs, nn.Module)):
                continue
            try:
                answer = qdeq.explain(ours, theirs, made.inputs if run else None)
            except qdeq.QdeqError as error:
                found[pair] = [f"refused: {error}"]
                continue
            blamed = [item for item in answer.findings if item.is_fault and item.kind not in _OF_THE_CPU]
            found[pair] = [f"{item.kind}: {item.message}" for item in blamed]
            same = None if answer.outcome is None else answer.outcome.top1_agreement
            if answer.agrees and same is not None and same < _LEAST_AGREEMENT:
                found[pair].append(f"agrees: {answer.verdict}")
    return found


def table(results: dict[str, dict[str, list[str]]]) -> str:
    """Return the Markdown table of results: network by engine, right ones of all pairs."""
    right: dict[tuple[str, str], int] = Counter()
    tried: dict[tuple[str, str], int] = Counter()
    models: dict[str, int] = Counter()
    for name, pairs in results.items():
        network, engine, _ = name.split("/")
        models[network] += 1
        right[network, engine] += sum(not blamed for blamed in pairs.values())
        tried[network, engine] += len(pairs)
    engines = sorted({engine for _, engine in tried}, key=ENGINES.index)
    lines = ["| network | int8 models | " + " | ".join(engines) + " |", "|---" * (len(engines) + 2) + "|"]
    for network, count in models.items():
        cells = [f"{right[network, engine]} of {tried[network, engine]}" for engine in engines]
        lines.append(f"| {network} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Judge all pairs; exit 1 if a layer of a correct pair is accused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--only", default="", help="a part of the recipes' names")
    parser.add_argument("--data", action="store_true", help="run pairs of modules on data, too")
    parser.add_argument("--out", type=Path, help="write what is held against each pair as JSON")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    start, results = time.time(), {}
    kinds: dict[str, int] = defaultdict(int)
    for name, make in recipes(arguments.networks.split(","), tuple(arguments.engines.split(","))):
        if arguments.only not in name:
            continue
        results[name] = judged(name, make, run=arguments.data)
        wrong = {pair: blamed for pair, blamed in results[name].items() if blamed}
        print(
            f"{time.time() - start:6.0f} s  {name:45} {len(results[name]) - len(wrong)} of {len(results[name])}",
            flush=True,
        )
        for blamed in wrong.values():
            kinds[blamed[0].partition(":")[0]] += 1
        for sentence, count in Counter(blamed[0] for blamed in wrong.values()).items():
            example = next(pair for pair, blamed in wrong.items() if blamed[0] == sentence)
            print(f"          {count} times, such as {example}: {sentence[:220]}", flush=True)
    total = sum(map(len, results.values()))
    print(f"\n{table(results)}\n\n{total - sum(kinds.values())} of {total} pairs; named otherwise: {dict(kinds)}")
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
