"""What a conversion needs beyond the model and its result."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource, torch, sys, warnings
warnings.simplefilter("ignore")
import torch.ao.nn.quantized as nnq
from torch import nn
from qdeq import dequantize_model

def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024

def linear(inputs, outputs):
    layer = nnq.Linear(1, 1)
    layer.in_features, layer.out_features = inputs, outputs
    integers = torch.randint(-128, 128, (outputs, inputs), dtype=torch.int8)
    layer.set_weight_bias(torch._make_per_tensor_quantized_tensor(integers, 0.01, 0), torch.zeros(outputs))
    return layer

# The sizes of VGG11's classifier.
model = nn.Sequential(linear(25088, 4096), linear(4096, 4096), linear(4096, 1000))
dequantize_model(nn.Sequential(linear(8, 8)))
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
result = dequantize_model(model)
needed = status("VmHWM") - before
size = sum(p.numel() * p.element_size() for p in result.parameters())
print(needed / size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_peak_memory_is_the_result():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 1.1, f"{float(done.stdout):.3f} times the float32 bytes of the result"
