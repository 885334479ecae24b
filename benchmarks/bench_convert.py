"""Time and memory of ``qdeq convert`` on a VGG11 checkpoint of 112 million int8 weights, beside two yardsticks.

python benchmarks/bench_convert.py [FOLDER]

Three ways to the same safetensors file, in turn, in one process, each with an fsync:
  plain    writing the finished file's bytes, 8 MB at a time
  by hand  torch.load, dequantize() of every weight, safetensors' save_file
  qdeq     qdeq.open and write_plan, as qdeq convert calls them
The files are compared before anything is timed. Memory is the peak (VmHWM) of ``qdeq convert`` as a process of its own,
less that of the same command on a tiny file.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import qdeq
from qdeq.files.safetensors.layout import plan_safetensors
from qdeq.files.safetensors.writing import write_plan

ROUNDS = 15
CHUNK = 8 << 20
CONVS = ((64, 3), (128, 64), (256, 128), (256, 256), (512, 256), (512, 512), (512, 512), (512, 512))
LINEARS = ((4096, 25088), (10, 4096))


def checkpoint(path: Path, *, tiny: bool) -> None:
    """Save a state dict with a quantized VGG11's names and shapes; one small layer if ``tiny``."""
    torch.manual_seed(0)

    def weight(*shape: int) -> torch.Tensor:
        scales = torch.rand(shape[0]) * 1e-3 + 1e-4
        fake = torch._empty_per_channel_affine_quantized(
            shape, scales=scales, zero_points=torch.zeros(shape[0], dtype=torch.int64), axis=0, dtype=torch.qint8
        )
        plain = torch.empty(0, dtype=torch.int8).set_(fake.untyped_storage(), 0, fake.size(), fake.stride())
        plain.copy_(torch.randint(-128, 128, shape, dtype=torch.int8))
        return fake

    sd: dict[str, object] = {}
    for number, (out, inner) in enumerate(() if tiny else CONVS):
        sd[f"features.{number}.weight"] = weight(out, inner, 3, 3)
        sd[f"features.{number}.bias"] = torch.randn(out)
        sd[f"features.{number}.scale"], sd[f"features.{number}.zero_point"] = torch.tensor(0.1), torch.tensor(0)
    for number, (out, inner) in enumerate(((4, 3),) if tiny else LINEARS):
        name = f"classifier.{number}"
        sd[f"{name}._packed_params._packed_params"] = (weight(out, inner), torch.randn(out))
        sd[f"{name}._packed_params.dtype"] = torch.qint8
        sd[f"{name}.scale"], sd[f"{name}.zero_point"] = torch.tensor(0.1), torch.tensor(0)
    torch.save(sd, path)


def by_hand(source: Path, target: Path) -> None:
    """Convert as one would without qdeq."""
    result = {}
    for name, value in torch.load(source, weights_only=True).items():
        if name.endswith("._packed_params._packed_params"):
            base = name.removesuffix("._packed_params._packed_params")
            result[f"{base}.weight"], result[f"{base}.bias"] = value[0].dequantize(), value[1].detach()
        elif isinstance(value, torch.Tensor) and not name.endswith((".scale", ".zero_point")):
            result[name] = value.dequantize() if value.is_quantized else value
    save_file(result, target)
    sync(target)


def sync(path: Path) -> None:
    """Bring a file to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def plain(data: memoryview, target: Path) -> None:
    """Write bytes and fsync."""
    with target.open("wb", buffering=0) as file:
        for begin in range(0, len(data), CHUNK):
            file.write(data[begin : begin + CHUNK])
        os.fsync(file.fileno())


def convert(source: Path, target: Path) -> None:
    """Do what ``qdeq convert`` does."""
    with qdeq.open(source) as weights:
        write_plan(plan_safetensors(weights, target), weights)


def peak_kilobytes(source: Path, target: Path) -> int:
    """Peak resident memory of ``qdeq convert`` in a process of its own."""
    code = (
        "import sys; from qdeq.cli import main; assert main(sys.argv[1:]) == 0; "
        "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')][0])"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, "convert", str(source), str(target)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main(folder: Path) -> None:
    """Compare, time, print."""
    warnings.simplefilter("ignore")
    source, tiny = folder / "vgg11_int8.pth", folder / "tiny_int8.pth"
    checkpoint(source, tiny=False)
    checkpoint(tiny, tiny=True)
    targets = {name: folder / f"{name}.safetensors" for name in ("plain", "hand", "qdeq")}
    by_hand(source, targets["hand"])
    convert(source, targets["qdeq"])
    expected, got = load_file(targets["hand"]), load_file(targets["qdeq"])
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name].view(torch.int32), got[name].view(torch.int32)) for name in got)
    del expected, got
    data = memoryview(targets["qdeq"].read_bytes())
    ways = {
        "plain": lambda: plain(data, targets["plain"]),
        "hand": lambda: by_hand(source, targets["hand"]),
        "qdeq": lambda: convert(source, targets["qdeq"]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            targets[name].unlink(missing_ok=True)
            os.sync()
            begin = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - begin)
    print(f"{len(data):,} bytes, {ROUNDS} rounds in turn, {torch.get_num_threads()} threads")
    print("  seconds: median (min..max)")
    for name, values in seconds.items():
        print(f"  {name:6} {statistics.median(values):.3f} ({min(values):.3f}..{max(values):.3f})")
    for name in ("plain", "hand"):
        ratios = [mine / theirs for mine, theirs in zip(seconds["qdeq"], seconds[name], strict=True)]
        print(f"  qdeq / {name}: {statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})")
    targets["qdeq"].unlink()
    large, small = peak_kilobytes(source, targets["qdeq"]), peak_kilobytes(tiny, folder / "tiny.safetensors")
    print(f"  peak memory over a tiny file's: {(large - small) * 1024 / 1e6:.0f} MB; largest tensor: 411 MB")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else ".") as scratch:
        main(Path(scratch))
