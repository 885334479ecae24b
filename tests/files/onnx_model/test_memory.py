"""Models larger than the memory that their conversion may take."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
ROOT = Path(__file__).parents[3]

# In a process of its own: the peak is that of this conversion alone, over what a tiny one leaves behind.
CODE = """
import os, sys, time, warnings
warnings.simplefilter("ignore")
import qdeq

def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024

tiny, large = sys.argv[1:]
qdeq.dequantize_onnx(tiny + "/model.onnx", tiny + "/out.onnx")
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
begin = time.perf_counter()
qdeq.dequantize_onnx(large + "/model.onnx", large + "/out.onnx")
print(status("VmHWM") - before, time.perf_counter() - begin, os.path.getsize(large + "/out.onnx.data"))
"""


def write_model(folder: Path, layers: int, width: int) -> Path:
    """``layers`` linear layers of int8, ``width ** 2`` bytes each, in one file beside the model; all share no bytes."""
    import numpy as np

    from tests.onnx_graphs.models import model, node, onnx

    scale = np.random.default_rng(0).uniform(0.01, 0.02, width).astype(np.float32)
    nodes, held, name = [], {"s": scale}, "x"
    for at in range(layers):
        tensor = onnx.TensorProto(name=f"w{at}_quantized", data_type=onnx.TensorProto.INT8, dims=[width, width])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "ints"), ("offset", at * width * width), ("length", width * width)):
            tensor.external_data.add(key=key, value=str(value))
        held[tensor.name] = tensor
        nodes.append(node("DequantizeLinear", f"w{at}_quantized s", f"w{at}_f", f"D{at}"))
        nodes.append(node("MatMul", f"{name} w{at}_f", name := f"h{at}", f"M{at}"))
    made = model(nodes, {"x": (1, width)}, [name], held)
    (folder / "model.onnx").write_bytes(made.SerializeToString())
    block = np.random.default_rng(1).integers(0, 256, width * width).astype(np.uint8)
    with open(folder / "ints", "wb") as file:
        for at in range(layers):
            file.write(np.roll(block, at).tobytes())
    return folder / "model.onnx"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize(
    ("layers", "width", "most"),
    [(8, 2900, 150 << 20), pytest.param(180, 4096, 300 << 20, marks=pytest.mark.slow)],
    ids=["64 MB", "3 GB"],
)
def test_memory_does_not_grow_with_the_model(tmp_path, layers, width, most):
    """The float weights of the first are larger than what it may need; the second is the real thing."""
    if layers > 100 and os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize < 17 << 30:
        pytest.skip("needs 17 GB of disk")
    folders = [tmp_path / "tiny", tmp_path / "large"]
    for folder, sizes in zip(folders, ((1, 64), (layers, width)), strict=True):
        folder.mkdir()
        write_model(folder, *sizes)
    command = [sys.executable, "-c", CODE, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    needed, seconds, written = (float(text) for text in done.stdout.split())
    for folder in folders:
        shutil.rmtree(folder)
    print(f"{needed / 2**20:.0f} MiB over a tiny one, {written:.0f} bytes in {seconds:.1f} s")
    assert written >= 4 * layers * width * width
    assert needed <= most < written
