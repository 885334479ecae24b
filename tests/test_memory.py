"""What a conversion needs beyond the model and its result."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# In a process of its own: the peak is that of this conversion alone.
CODE = """
import ctypes, gc, sys, warnings
warnings.simplefilter("ignore")
import torch
from torch import nn
import torch.ao.nn.quantized as nnq
from benchmarks.models import quantized_vgg11
from qdeq import dequantize_model

def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024

torch.manual_seed(0)
model = quantized_vgg11()
dequantize_model(quantized_vgg11(hidden=8))  # loads what a first call loads
gc.collect()
ctypes.CDLL(None).malloc_trim(0)  # what building the model left in the heap must not be taken for free memory
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
result = dequantize_model(model, activations=sys.argv[1])
needed = status("VmHWM") - before
parameters = list(result.parameters())
size = sum(p.numel() * p.element_size() for p in parameters)
print(len(parameters), sum(p.numel() for p in parameters), needed / size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize("activations", ["drop", "fake_quant"])
def test_peak_memory_is_the_result(activations):
    """VGG11 for 224 x 224, every layer of it: 112 million weights, 448 MB of float32."""
    command = [sys.executable, "-c", CODE, activations]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    parameters, values, ratio = done.stdout.split()
    assert int(parameters) == 20
    assert int(values) > 112e6
    assert float(ratio) <= 1.1, f"{float(ratio):.4f} times the float32 bytes of the result"
    assert float(ratio) >= 0.99, "the result alone needs more: the peak was not measured"
