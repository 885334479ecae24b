"""Files that are damaged, are something else, or were written to do harm: one QdeqError each, and nothing runs."""

from __future__ import annotations

import time

import pytest
import torch

import qdeq
from qdeq.sources.torchscript import budget
from tests.sources.torchscript.archives import PATH, Plain, changed, with_code
from tests.sources.torchscript.scripts import saved

MEGA = 1_000_000
DOUBLED = "\n".join(f"a{i} = [a{i - 1}, a{i - 1}]" for i in range(1, 60))


@pytest.fixture
def small_budget(monkeypatch):
    """Refused sooner: what the limits are is tested once."""
    monkeypatch.setattr(budget, "_MAX_STEPS", 20_000)
    monkeypatch.setattr(budget, "_MAX_NODES", 200)


def refused(archive: bytes, match: str, tmp_path, seconds: float = 10) -> None:
    path = tmp_path / "script.pt"
    path.write_bytes(archive)
    begin = time.process_time()
    with pytest.raises(qdeq.QdeqError, match=match) as caught:
        qdeq.dequantize_model(path)
    assert time.process_time() - begin < seconds
    assert "script.pt" in str(caught.value)


@pytest.mark.parametrize(("body", "match"), [
    ("y = x\nfor _ in range(1000000000):\n  y = torch.neg(y)\nreturn y", "a graph of at most 10000 nodes"),
    ("n = 0\nfor _ in range(1000000000):\n  n = torch.add(n, 1)\nreturn torch.add(x, n)", "within 500000 steps"),
], ids=["nodes", "numbers"])  # fmt: skip
def test_code_that_never_ends(body, match, tmp_path):
    refused(with_code(body), match, tmp_path)


@pytest.mark.parametrize(("body", "match"), [
    ("while True:\n  n = 0\nreturn x", "within 20000 steps"),
    ("return (self).forward(x, )", "at most 64 calls inside each other"),
], ids=["while", "recursion"])  # fmt: skip
def test_other_code_that_never_ends(body, match, tmp_path, small_budget):
    refused(with_code(body), match, tmp_path)


def test_calls_that_double_forty_times(tmp_path, small_budget):
    calls = "".join(
        f"def f{i}(x: Tensor) -> Tensor:\n  return torch.add({PATH}.f{i - 1}(x, ), {PATH}.f{i - 1}(x, ))\n"
        for i in range(1, 40)
    )
    more = f"def f0(x: Tensor) -> Tensor:\n  return torch.neg(x)\n{calls}"
    refused(with_code(f"return {PATH}.f39(x, )", more=more), "a graph of at most 200 nodes", tmp_path)


@pytest.mark.parametrize(("body", "match"), [
    (f"return {'(' * MEGA}{')' * MEGA}", "at most 100 brackets inside each other"),
    (f"return {'(' * 5 * MEGA}{')' * 5 * MEGA}", "at most 4194304 bytes of code"),
    (f"return x{'.a' * MEGA}", "1000 marks between commas"),
    (f"return x{'[0]' * MEGA}", "1000 marks between commas"),
    (f"return {'-' * MEGA}1", "1000 marks between commas"),
    (f"return {'not ' * MEGA}1", "code that torch.jit.save writes"),
    (f"return torch.add(x, {'9' * MEGA})", "code that torch.jit.save writes"),
    ("return )", "code that torch.jit.save writes"),
    ("return '\0'", "code that torch.jit.save writes"),
    ("".join(f"{' ' * i}if True:\n" for i in range(150)), "code that torch.jit.save writes"),
], ids=["brackets", "size", "dots", "indexes", "minus", "not", "digits", "syntax", "nul", "indented"])  # fmt: skip
def test_code_that_takes_python_long_to_parse(body, match, tmp_path):
    refused(with_code(body), match, tmp_path)


@pytest.mark.parametrize(("body", "match"), [
    ("return torch.add(x, torch.pow(10, 1000000000))", "pow, got 'a whole number of more than 64 bits'"),
    ("return torch.add(x, torch.mul(4611686018427387904, 4))", "mul, got 'a whole number of more than 64 bits'"),
    ("s = torch.mul([1], 1000000000000)\nreturn x", "mul, got 'more than 100000 elements'"),
    ("s = 'a'\nfor _ in range(60):\n  s = torch.add(s, s)\nreturn x", "add, got 'more than 100000 elements'"),
    ("s = [1]\nfor _ in range(60):\n  torch.extend(s, s)\nreturn x", "within 20000 steps"),
    ("s = torch.list(range(1000000000))\nreturn x", "a function that torch.jit.save writes, got 'range'"),
    (f"a0 = [x, x]\n{DOUBLED}\nreturn a59", "within 20000 steps"),
    (f"a0 = [1, 2]\n{DOUBLED}\nb = torch.eq(a59, a59)\nreturn x", "within 20000 steps"),
    ("a = [x]\ntorch.append(a, a)\nreturn a", "more than Python can follow"),
    ("a = [1]\nfor _ in range(2000):\n  a = [a]\nreturn a", "more than Python can follow"),
], ids=["pow", "mul", "list", "string", "extend", "range", "doubled", "compared", "itself", "deep"])  # fmt: skip
def test_values_that_grow_without_end(body, match, tmp_path, small_budget):
    refused(with_code(body), match, tmp_path)


@pytest.mark.parametrize(("body", "match"), [
    ("return torch.from_file('/etc/passwd', False, 10)", "operators that models compute with, got aten::from_file"),
    ("torch.save(x, 'file')\nreturn x", "operators that models compute with, got aten::save"),
    ("return ops.somebody.run(x)", "operators of torch itself, got 'somebody::run'"),
    ("return ops.prim.PythonOp(x)", "operators that models compute with, got prim::PythonOp"),
    ("return __import__('os').system('true')", "a function that torch.jit.save writes, got '__import__'"),
    ("return getattr(x, '__class__')", "an object with attributes"),
    ("return x.__class__", "an object with attributes"),
    ("return self.__class__", "got '__class__'"),
    ("return (lambda: x)()", "an expression that torch.jit.save writes, got Lambda"),
    ("import os\nreturn x", "a statement that torch.jit.save writes, got Import"),
    ("return [x for x in range(9)]", "an expression that torch.jit.save writes, got ListComp"),
    ("return y", "a name that has a value, got 'y'"),
    ("return CONSTANTS.c7", "one of 0 constants"),
    ("return torch.to(x, torch.device('nowhere'))", "a device of this torch"),
    ("ops.prim.RaiseException('no')\nreturn x", "code that ends, got an exception"),
    ("return __torch__.nothing.here(x)", "a function that the code has"),
    ("return ops.quantized.linear_prepack(x, None)", "a weight that lies in the file"),
    ("return ops.quantized.linear_prepack()", "arguments of quantized::linear_prepack"),
    ("return ops.quantized.invented(x)", "an operator of this torch, got 'quantized::invented'"),
])  # fmt: skip
def test_code_that_is_no_models(body, match, tmp_path):
    refused(with_code(body), match, tmp_path)


def test_every_truncation_is_refused(tmp_path):
    archive = saved(torch.jit.script(Plain()))
    for size in (0, 1, 3, 4, 100, len(archive) // 2, len(archive) - 1):
        refused(archive[:size], "expected", tmp_path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "script.pt"
    torch.save({"weight": torch.ones(3)}, path)
    refused(path.read_bytes(), "a TorchScript archive, got one without code", tmp_path)
    refused(b"no archive at all", "a TorchScript archive, got a file that begins", tmp_path)
    archive = saved(torch.jit.script(Plain()))
    no_code = changed(archive, lambda name, data: None if "/code/" in name else data)
    refused(no_code, "without code", tmp_path)
    refused(changed(archive, lambda name, data: None if name.endswith("data.pkl") else data), "one data.pkl", tmp_path)
    refused(changed(archive, lambda name, data: b"\xff" if name.endswith(".py") else data), "code in UTF-8", tmp_path)
    with pytest.raises(qdeq.QdeqError, match="expected a readable file"):
        qdeq.dequantize_model(tmp_path / "missing.pt")


def test_attributes_run_nothing(tmp_path):
    marker = tmp_path / "ran"
    call = "\x80\x02cos\nsystem\n(X\x05\x00\x00\x00touchtR.".encode()
    archive = changed(saved(torch.jit.script(Plain())), lambda name, data: call if name.endswith("data.pkl") else data)
    refused(archive, r"data\.pkl", tmp_path)
    assert not marker.exists()
