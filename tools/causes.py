"""Makes the table of causes in docs/explain.md: int8 models gone wrong though their weights are right.

    python -m tools.causes --trials 10
    python -m tools.causes --sensitivity 25

The faults of tools/faults/outcome.py in small trained networks; the first finding must have the right kind at the right
module. With --sensitivity one module is damaged, which must come first in the table of what each module costs.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter

import torch

import qdeq
from tools.faults import NoPlaceError
from tools.faults.outcome import OUTCOME_FAULTS, SUBJECTS, damaged, outcome_mutant
from tools.models import engine

__all__ = ["costs_most", "named_first"]


def named_first(kind: str, name: str, seed: int) -> str:
    """The kind itself, if it is named first at the right module; otherwise what was named, and where."""
    mutant = outcome_mutant(kind, name, seed)
    with engine(mutant.engine):
        explanation = qdeq.explain(mutant.int8, mutant.float_model, mutant.data)
    # Whether the CPU of the moment saturates has nothing to do with the fault.
    first = next(item for item in explanation.findings if item.kind != "saturation")
    if not explanation.agrees and first.kind == kind and first.module in mutant.modules:
        return kind
    return f"{first.kind} at {first.module} (wanted {mutant.modules[0]})"


def costs_most(name: str, seed: int) -> str:
    """Say "damaged" if the damaged module comes first in the sensitivity; otherwise what does."""
    mutant = damaged(name, seed)
    rows = qdeq.explain(mutant.int8, mutant.float_model, mutant.data, sensitivity=True).sensitivity
    return (
        "damaged" if rows[0].module in mutant.modules else f"{rows[0].module} (wanted {mutant.modules[0]}, seed {seed})"
    )


def _sensitivity(networks: list[str], trials: int) -> bool:
    right = total = 0
    for name in networks:
        found = Counter(costs_most(name, seed) for seed in range(trials))
        right, total = right + found["damaged"], total + trials
        print(f"{name}: {found['damaged']} of {trials} {dict(found)}", flush=True)
    print(f"the damaged module costs most in {right} of {total}")
    return right >= 0.95 * total


def main() -> int:
    """Run the trials; exit 1 if fewer are right than the project promises."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10, help="of each fault on each network")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(OUTCOME_FAULTS))
    parser.add_argument("--networks", default=",".join(SUBJECTS))
    parser.add_argument(
        "--sensitivity", type=int, default=0, help="damage one module so often on each network, instead"
    )
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    start, right, total = time.time(), 0, 0
    networks = arguments.networks.split(",")
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.trials)
    if arguments.sensitivity:
        return 0 if _sensitivity(networks, arguments.sensitivity) else 1
    print("| fault | " + " | ".join(networks) + " | named otherwise |", "|---" * (len(networks) + 2) + "|", sep="\n")
    for kind in arguments.kinds.split(","):
        cells, wrong = [], Counter[str]()
        for name in networks:
            try:
                named = Counter(named_first(kind, name, seed) for seed in seeds)
            except NoPlaceError:
                cells.append("no place")
                continue
            cells.append(f"{named[kind]} of {named.total()}")
            right, total = right + named.pop(kind, 0), total + len(seeds)
            wrong.update({f"{name}: {what}": count for what, count in named.items()})
        print(f"| `{kind}` | {' | '.join(cells)} | {', '.join(f'{k} {n}' for k, n in wrong.items())} |", flush=True)
    print(f"\n{right} of {total} in {time.time() - start:.0f} s")
    return 0 if right >= 0.95 * total else 1


if __name__ == "__main__":
    sys.exit(main())
