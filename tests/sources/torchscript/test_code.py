"""What the code of a script may say, and what becomes of it: code of the tests' own in an archive that torch wrote."""

from __future__ import annotations

import operator
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

import qdeq
from tests.sources.torchscript import models
from tests.sources.torchscript.archives import PATH, changed, with_code
from tests.sources.torchscript.scripts import same, saved

X = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]])


def built(archive: bytes, tmp_path) -> torch.fx.GraphModule:
    path = tmp_path / "script.pt"
    path.write_bytes(archive)
    return qdeq.dequantize_model(path, strict=False)


def targets(model: torch.fx.GraphModule) -> Counter:
    return Counter(getattr(node.target, "__name__", "") for node in model.graph.nodes if node.op == "call_function")


def test_known_numbers_are_computed_and_loops_unrolled(tmp_path):
    body = """y = x
n = 0
for i in range(torch.add(1, 2)):
  if torch.eq(torch.remainder(i, 2), 0):
    y = torch.mul(y, torch.add(i, 2))
  else:
    n = torch.add(n, 10)
while torch.lt(n, 30):
  n = torch.add(n, 7)
return torch.add(y, n)"""
    model = built(with_code(body), tmp_path)
    assert targets(model) == {"mul": 2, "add": 1}
    assert same(model(X), X * 2 * 4 + 31)


def test_lists_dicts_tuples_and_named_tuples(tmp_path):
    body = f"""items = annotate(List[Tensor], [])
_0 = torch.append(items, torch.neg(x))
torch.extend(items, [x])
named = annotate(Dict[str, Tensor], {{}})
torch._set_item(named, "first", items[0])
pair = {PATH}.Pair(named["first"], torch.len(items))
first, count, = pair
a, b, = torch.split(pair.first, 1, 0)
shape = torch.size(x)
rows, columns, = shape
flat = torch.reshape(first, [torch.mul(rows, columns)])
return (torch.add(a, count), b, flat, (items)[1:2], torch.slice(torch.list(shape), 1, 2), named)"""
    more = "class Pair(NamedTuple):\n  first : Tensor\n  count : int\n"
    model = built(with_code(body, more=more), tmp_path)
    a, b, flat, rest, last, named = model(X)
    assert same((a, b, flat), (-X[:1] + 2, -X[1:], -X.reshape(-1)))
    assert same(rest[0], X)
    assert last == [3]
    assert same(named["first"], -X)
    assert same(model(X[:, :1])[2], -X[:, 0])  # sizes are not constants


def test_branches_that_raise_are_left_out(tmp_path):
    body = """if torch.ne(torch.dim(x), 2):
  _0 = torch.ne(torch.dim(x), 3)
else:
  _0 = False
if _0:
  ops.prim.RaiseException("2 or 3 dimensions", "builtins.ValueError")
else:
  pass
if torch.eq(torch.size(x, 1), 3):
  y = torch.relu(x)
else:
  ops.prim.RaiseException(torch.format("{} columns", torch.size(x, 1)))
  y = uninitialized(Tensor)
return y"""
    model = built(with_code(body), tmp_path)
    assert targets(model) == {"relu": 1}
    assert same(model(X), X.relu())


@pytest.mark.parametrize(("body", "line", "what"), [
    ("y = x\nif bool(torch.gt(torch.sum(x), 0)):\n  y = torch.neg(x)\nelse:\n  pass\nreturn y", 9, "bool()"),
    ("if torch.gt(torch.size(x, 0), 1):\n  y = torch.neg(x)\nelse:\n  y = x\nreturn y", 8, "if torch.gt("),
    ("b = torch.eq(torch.dim(x), 2)\nif torch.__not__(b):\n  y = x\nelse:\n  y = torch.neg(x)\nreturn y", 9, "if t"),
    ("if torch.eq(torch.dim(x), 2):\n  b = True\nelse:\n  b = False\nreturn torch.sum(x, [0], b)", 8, "if torch.eq("),
    ("y = x\nfor i in range(torch.size(x, 0)):\n  y = torch.add(y, i)\nreturn y", 9, "for range("),
    ("n = torch.size(x, 0)\nwhile torch.gt(n, 0):\n  n = torch.sub(n, 1)\nreturn torch.add(x, n)", 9, "while torch.gt"),
    ("return torch.add(x, int(torch.sum(x)))", 8, "int()"),
    ("self.weight = x\nreturn x", 8, "sets weight"),
])  # fmt: skip
def test_what_the_input_decides_is_refused_by_file_and_line(body, line, what, tmp_path):
    with pytest.raises(qdeq.QdeqValueError) as caught:
        built(with_code(body), tmp_path)
    text = str(caught.value)
    assert f"archives.py line {line}: " in text
    assert what in text
    assert "qdeq.open reads the weights of this file all the same" in text
    assert list(qdeq.open(tmp_path / "script.pt")) == ["weight"]


def test_what_writes_into_a_tensor_stays(tmp_path):
    """No node uses the results, and each operator has several overloads."""
    body = """y = torch.clone(x)
_0 = torch.add_(torch.select(y, 0, 0), 1)
_1 = torch.copy_(torch.select(y, 0, 1), torch.select(x, 0, 0))
return y"""
    model = built(with_code(body), tmp_path)
    assert same(model(X), torch.stack([X[0] + 1, X[0]]))


def test_sizes_of_a_trace_are_numbers(tmp_path):
    """A trace keeps sizes as tensors and multiplies them by constants."""

    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, x):
            rows, columns = x.shape[0], x.shape[1]
            y = self.linear(x).reshape(rows // 2 * 2, columns + 1)
            return y.view(2, rows // 2, -1), torch.zeros(rows, 3)

    model = torch.ao.quantization.quantize_dynamic(Folded().eval(), {nn.Linear})
    x = torch.randn(4, 3)
    rebuilt = qdeq.dequantize_model(torch.jit.trace(model, (x,), check_trace=False))
    assert same(rebuilt(x), qdeq.dequantize_model(model)(x))
    x = torch.randn(6, 3)
    assert same(rebuilt(x), qdeq.dequantize_model(model)(x))
    assert not {operator.truediv, float, int, bool} & {node.target for node in rebuilt.graph.nodes}


def test_inputs_that_may_be_left_out_take_their_default(tmp_path):
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(
            self, pair: tuple[Tensor, list[Tensor]], scale: float, mask: Tensor | None = None, twice: bool = True
        ) -> Tensor:
            y = self.linear(pair[0]) * scale + pair[1][0]
            if mask is not None:
                y = y * mask
            return y + y if twice else y

        @torch.jit.export
        def inspect(self) -> int:
            return 3

    model = torch.ao.quantization.quantize_dynamic(Optional().eval(), {nn.Linear})
    rebuilt, report = qdeq.dequantize_model(torch.jit.script(model), return_report=True)
    given = (X, [X.neg()])
    assert same(rebuilt(given, 0.5), qdeq.dequantize_model(model)(given, 0.5))
    assert report.notes[""] == [
        "forward takes no mask: it is None, its default",
        "forward takes no twice: it is True, its default",
        "only forward became a graph; the script also has inspect",
    ]


def test_convolutions_of_torch_1_4(tmp_path):
    """They hand the geometry over at every call, to an overload that torch still has."""
    model, x = models.static(), models.images()
    archive = saved(torch.jit.script(model))
    new = b"quantized.conv2d(input0, _packed_params, scale"
    old = b"quantized.conv2d(input0, _packed_params, [9, 9], [9, 9], [9, 9], 9, scale"
    found = []
    archive = changed(archive, lambda name, data: found.append(new in data) or data.replace(new, old))
    assert any(found)
    path = tmp_path / "script.pt"
    path.write_bytes(archive)
    assert same(qdeq.dequantize_model(path)(x), qdeq.dequantize_model(model)(x))  # the packed weight's own is right


def test_a_float_script_says_so(tmp_path):
    path = tmp_path / "script.pt"
    path.write_bytes(with_code("return torch.mul(x, self.weight)"))
    with pytest.raises(qdeq.QdeqError, match=r"at least one quantized module, got none\. It is a float model already"):
        qdeq.dequantize_model(path)
    model = qdeq.dequantize_model(path, strict=False)
    assert same(model(X), X)
    assert model.weight.requires_grad
