"""The example scripts run, and say what they promise."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.slow


def run(name: str) -> str:
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_export_onnx():
    for package in ("onnx", "onnxruntime", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} of the extra [onnx] is not installed")
    out = run("export_onnx.py")
    drop, fake_quant = (line for line in out.splitlines() if ".onnx: " in line)
    assert "QuantizeLinear" not in drop
    assert "'QuantizeLinear': 5" in fake_quant
    assert "'DequantizeLinear': 5" in fake_quant
    differences = [float(value) for value in re.findall(r"at most ([0-9.e+-]+)", out)]
    assert len(differences) == 2
    assert max(differences) < 1e-4
    assert float(re.search(r"fake_quant: ([0-9.]+) %", out)[1]) >= 99


def test_int8_onnx():
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} of the extra [onnx] is not installed")
    out = run("int8_onnx.py")
    assert "3 weights with their integers: features.0.weight_quantized, " in out
    assert float(re.search(r"at most ([0-9.]+) steps", out)[1]) <= 2


def test_fine_tune_and_requantize():
    out = run("fine_tune_and_requantize.py")
    assert len(re.findall(r": 0 of \d+ integers differ", out)) == 3
    first, last = (float(loss) for loss in re.findall(r"loss ([0-9.]+)", out))
    assert last < first


def test_run_on_gpu():
    out = run("run_on_gpu.py")
    means = [float(value) for value in re.findall(r"int8 ([0-9.e+-]+)", out)]
    assert len(means) == 3
    assert means[2] < means[0]
    assert "bfloat16" in out


def test_change_engine():
    out = run("change_engine.py")
    assert "fbgemm: 0 integers differ, outputs by at most 0 steps" in out
    assert "qnnpack: 0 integers differ" in out or "qnnpack: not in this build" in out


def test_every_example_is_run():
    scripts = {path.stem for path in EXAMPLES.glob("*.py")} - {"common"}
    assert scripts == {name.removeprefix("test_") for name in globals() if name.startswith("test_")} - {
        "every_example_is_run"
    }


def test_qat_checkpoint():
    out = run("qat_checkpoint.py")
    accuracies = [float(value) for value in re.findall(r"accuracy ([0-9.]+)", out)]
    assert len(accuracies) == 3
    assert min(accuracies) > 0.9
    assert max(accuracies) - min(accuracies) < 0.05
    assert 0 < float(re.search(r"by ([0-9.]+) %", out)[1]) < 80


def test_fx_model():
    out = run("fx_model.py")
    assert re.search(r"linear\.weight +-> linear\.weight", out)
    assert float(re.search(r"fake_quant: largest difference to int8 ([0-9.]+)", out)[1]) < 0.02
    assert "6 parameters have gradients" in out
    assert "=False" in out


def test_torchscript_file():
    out = run("torchscript_file.py")
    assert "6 tensors, 5418 parameters" in out
    assert "gradients for 6 parameters" in out
    assert float(re.search(r"largest difference to the int8 model: ([0-9.]+)", out)[1]) < 0.05
