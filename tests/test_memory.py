"""What a conversion needs beyond the model and its result."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CODE = """
import torch, warnings
warnings.simplefilter("ignore")
import torch.ao.nn.quantized as nnq
from torch import nn
from benchmarks.models import quantized_vgg11
from qdeq import dequantize_model

def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024

torch.manual_seed(0)
model = quantized_vgg11()
dequantize_model(nn.Sequential(nnq.Linear(8, 8), nnq.Conv2d(8, 8, 3)))
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
result = dequantize_model(model)
needed = status("VmHWM") - before
size = sum(p.numel() * p.element_size() for p in result.parameters())
assert size > 440e6, size
print(needed / size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_peak_memory_of_vgg11_is_its_result():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    # Less than 0.9 would mean that the result was in memory before.
    assert 0.9 < float(done.stdout) <= 1.05, f"{float(done.stdout):.3f} times the float32 bytes of the result"
