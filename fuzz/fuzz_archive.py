"""Feed damaged and hostile files to qdeq.open.

Every file must read right or raise one QdeqError that names the file, within 5 seconds and 500 MB; nothing else may
happen: no signal, no hang, no other exception, no file written, no process started, no import that a file asked for.
Seconds are those of the processor, so that a busy machine does not count.

    python fuzz/fuzz_archive.py --seed 0 --count 10000

A file is made from a real one and a number: ``--seed S --only N`` repeats file N alone.
"""

from __future__ import annotations

import argparse
import codecs
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

SECONDS = 5.0
MEGABYTES = 500
BATCH = 500
_WATCHED = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "socket.connect",
    "os.remove",
    "os.rename",
    "os.mkdir",
)


class TooSlow(BaseException):
    """The alarm of one file."""


class Guard:
    """Records what reading a file must never do."""

    def __init__(self) -> None:
        """Install the hook; it is idle until ``watching`` is set."""
        self.watching = False
        self.events: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        wrote = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if wrote or event.startswith(_WATCHED) or event == "import":
            self.events.append(f"{event} {args[:1]!r}")


def read_everything(path: str) -> dict[str, bytes]:
    """Read every weight and dequantize it; name -> bytes of the float values."""
    import torch

    import qdeq

    values: dict[str, bytes] = {}
    with qdeq.open(path) as archive:
        archive.describe()
        for name, value in archive.items():
            tensor = value.dequantize(allow_bad_scales=True) if isinstance(value, qdeq.QuantizedWeight) else value
            values[name] = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return values


def judge(path: str, expected: dict[str, bytes] | None, guard: Guard) -> str:
    """Read one file; return "read", "refused", or what went wrong."""
    import qdeq

    start_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    guard.events.clear()
    signal.setitimer(signal.ITIMER_PROF, 2 * SECONDS)
    guard.watching = True
    try:
        values = read_everything(path)
        verdict = "read" if expected is None or values == expected else "WRONG VALUES"
    except qdeq.QdeqError as error:
        named = os.path.basename(path) in str(error) or "dequantize" in str(error)
        verdict = "refused" if named else f"NO FILE NAME: {error}"
    except TooSlow:
        verdict = "HANG"
    except Exception as error:  # noqa: BLE001 - any other kind is the finding
        verdict = f"EXCEPTION {type(error).__name__}: {error}"
    finally:
        guard.watching = False
        signal.setitimer(signal.ITIMER_PROF, 0)
    if guard.events:
        verdict = f"SIDE EFFECT {guard.events[:3]}"
    if time.process_time() - begin > SECONDS:
        verdict = f"SLOW {time.process_time() - begin:.1f} s"
    if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start_rss) / 1024 > MEGABYTES:
        verdict = "MEMORY"
    return verdict


def _alarm(number: int, frame: FrameType | None) -> None:
    raise TooSlow


def worker(seed: int, start: int, stop: int, corpus: str) -> None:
    """Judge files ``start`` to ``stop``; one JSON line each, flushed, so that a crash shows where it was."""
    import mutations

    import qdeq

    seeds = sorted(Path(corpus).iterdir())
    originals = {path: path.read_bytes() for path in seeds}
    right = {path: read_everything(str(path)) for path in seeds}
    signal.signal(signal.SIGPROF, _alarm)
    # pickletools decodes the UNICODE opcode with this codec, which Python imports on first use, whatever the file.
    codecs.lookup("raw_unicode_escape")
    guard = Guard()
    qdeq.open(seeds[0]).report.to_json()
    with tempfile.TemporaryDirectory() as folder:
        target = os.path.join(folder, "hostile.pt")
        for index in range(start, stop):
            rng = random.Random(f"{seed}/{index}")
            source = seeds[rng.randrange(len(seeds))]
            kind, data, exact = mutations.mutate(rng, originals[source], index)
            print(json.dumps({"start": index, "kind": kind, "source": source.name}), flush=True)
            Path(target).write_bytes(data)
            verdict = judge(target, right[source] if exact else None, guard)
            if kind == "data bit flip" and verdict != "refused":
                verdict = f"CRC MISSED ({verdict})"
            if os.listdir(folder) != ["hostile.pt"]:
                verdict = "FILE CREATED"
            print(json.dumps({"index": index, "kind": kind, "verdict": verdict, "source": source.name}), flush=True)


def run(seed: int, count: int, first: int = 0) -> tuple[Counter[tuple[str, str]], list[dict[str, Any]]]:
    """Run all files in worker processes; return counts by (kind, verdict) and the failures."""
    import corpus as corpus_module

    counts: Counter[tuple[str, str]] = Counter()
    failures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        corpus_module.write(Path(folder))
        at = first
        while at < first + count:
            stop = min(at + BATCH, first + count)
            command = [sys.executable, __file__, "--seed", str(seed), "--worker", str(at), str(stop), folder]
            done = subprocess.run(command, capture_output=True, text=True, timeout=BATCH * 2 * SECONDS)
            lines = [json.loads(line) for line in done.stdout.splitlines()]
            for line in lines:
                if "verdict" in line:
                    counts[line["kind"], line["verdict"].split(":")[0]] += 1
                    if line["verdict"] not in ("read", "refused"):
                        failures.append(line)
            if done.returncode:
                last = lines[-1] if lines else {"start": at}
                failures.append({**last, "verdict": f"CRASH {done.returncode}: {done.stderr[-2000:]}"})
                at = last.get("start", last.get("index", at)) + 1
            else:
                at = stop
    return counts, failures


def main() -> int:
    """Run from the command line; 0 if every file was read right or refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--only", type=int, help="repeat one file")
    parser.add_argument("--worker", nargs=3, metavar=("START", "STOP", "CORPUS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.seed, int(options.worker[0]), int(options.worker[1]), options.worker[2])
        return 0
    begin = time.perf_counter()
    first, count = (options.only, 1) if options.only is not None else (0, options.count)
    counts, failures = run(options.seed, count, first)
    for (kind, verdict), number in sorted(counts.items()):
        print(f"{number:7d}  {kind:24s} {verdict}")
    for failure in failures[:20]:
        print(json.dumps(failure), file=sys.stderr)
    seconds = time.perf_counter() - begin
    print(f"{sum(counts.values())} files, {len(failures)} failures, {seconds:.0f} s, seed {options.seed}")
    return 1 if failures or sum(counts.values()) != count else 0


if __name__ == "__main__":
    sys.exit(main())
