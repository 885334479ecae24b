"""What a diagnosis needs beyond both models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CODE = """
import torch, warnings
warnings.simplefilter("ignore")
from benchmarks.models import quantized_vgg11
import qdeq

def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024

torch.manual_seed(0)
small = quantized_vgg11(8)
qdeq.explain(small, qdeq.dequantize_model(small))
model = quantized_vgg11()
rebuilt = qdeq.dequantize_model(model)
if {wrong}:
    with torch.no_grad():
        for parameter in rebuilt.parameters():
            parameter += parameter.std() * torch.randn_like(parameter)
size = sum(parameter.numel() * parameter.element_size() for parameter in rebuilt.parameters())
assert size > 440e6, size
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
assert qdeq.explain(model, rebuilt).agrees is not {wrong}
print((status("VmHWM") - before) / size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize("wrong", [False, True])
def test_peak_memory_of_vgg11_is_less_than_its_float_weights(wrong):
    command = [sys.executable, "-c", CODE.replace("{wrong}", str(wrong))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    # Less than 0.2 would mean that the integers, a quarter of the floats, were never looked at.
    assert 0.2 < float(done.stdout) <= 1.0, f"{float(done.stdout):.3f} times the float32 bytes"
