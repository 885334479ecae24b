"""The contract of qdeq.weights.packed: recognition, bias, errors, and what happens without the extension."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest
import torch

import qdeq
from qdeq import QdeqError, QdeqTypeError, QdeqValueError
from qdeq.weights import packed
from tests.weights.packed import cases

pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
Q = torch.ops.quantized


@pytest.fixture(params=["in place", "unpack()"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "unpack()":
        monkeypatch.setattr(packed.ops, "why_not_in_place", lambda: "taken away by a test")
    return str(request.param)


def linear(scale: float = 0.1, rows: int = 4, cols: int = 8, bias: torch.Tensor | None = None) -> Any:
    q = torch._make_per_tensor_quantized_tensor(torch.ones(rows, cols, dtype=torch.int8), scale, 0)
    with cases.engine("fbgemm"):
        return Q.linear_prepack(q, bias)


def test_recognises_packed_weights() -> None:
    rng = random.Random(0)
    with cases.engine("fbgemm"):
        objects = [
            linear(),
            *(cases.random_conv(rng, dims) for dims in (1, 2, 3)),
            cases.random_transposed_conv(rng, 2),
            Q.linear_prepack_fp16(torch.randn(4, 8), None),
            torch.ops.sparse.qlinear_prepack(linear().unpack()[0], None, 1, 4),
        ]
        rnn = torch.ao.nn.quantized.dynamic.LSTM(4, 4)._all_weight_values[0].param
    assert all(packed.is_packed_weight(obj) for obj in objects)
    for obj in (rnn, None, torch.randn(2), torch.nn.Linear(2, 2), "packed"):
        assert not packed.is_packed_weight(obj)


def test_conv1d_comes_back_with_four_dimensions(way: str) -> None:
    q = torch.quantize_per_tensor(torch.randn(6, 5, 3), 0.1, 0, torch.qint8)
    with cases.engine("fbgemm"):
        obj = Q.conv1d_prepack(q, None, [1], [0], [1], 1)
    assert qdeq.dequantize(obj).shape == (6, 5, 1, 3)
    assert torch.equal(qdeq.dequantize(obj)[:, :, 0], q.dequantize())


def test_public_functions_take_packed_weights(way: str) -> None:
    obj = linear()
    assert torch.equal(qdeq.dequantize(obj), torch.full((4, 8), 0.1))
    assert qdeq.unpack(obj).dtype == "qint8"


def test_float16_linear(way: str) -> None:
    weight = torch.randn(9, 33)
    obj = Q.linear_prepack_fp16(weight, None)
    expected = Q.linear_unpack_fp16(obj)[0] if hasattr(Q, "linear_unpack_fp16") else obj.unpack()[0]
    assert torch.equal(qdeq.dequantize(obj), expected)
    assert torch.equal(qdeq.dequantize(obj), weight.half().float())
    out = torch.empty(33, 9).t()
    assert torch.equal(qdeq.dequantize(obj, out=out), expected)
    with pytest.raises(QdeqTypeError, match="float16"):
        qdeq.unpack(obj)


def test_sparse_linear() -> None:
    q = linear(rows=8).unpack()[0]
    with cases.engine("fbgemm"):
        obj = torch.ops.sparse.qlinear_prepack(q, torch.ones(8), 1, 4)
    assert torch.equal(qdeq.dequantize(obj), q.dequantize())
    assert torch.equal(packed.packed_bias(obj), torch.ones(8))


@pytest.mark.parametrize("dtype", [torch.quint8, torch.quint4x2])
def test_embedding(way: str, dtype: torch.dtype) -> None:
    rows = torch.rand(10) + 0.1
    q = torch.quantize_per_channel(torch.randn(10, 16), rows, torch.rand(10), 0, dtype)
    obj = Q.embedding_bag_prepack(q)
    assert torch.equal(qdeq.dequantize(obj).view(torch.int32), q.dequantize().view(torch.int32))
    assert packed.packed_bias(obj) is None
    weight = qdeq.unpack(obj)
    del obj, q
    assert torch.equal(weight.scale.float(), rows)


# ---- bias ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [name for name in torch.backends.quantized.supported_engines if name != "none"])
def test_bias_is_a_copy(way: str, engine: str) -> None:
    q = torch.quantize_per_tensor(torch.randn(4, 8, 1, 1), 0.1, 0, torch.qint8)
    with cases.engine(engine):
        objects = [
            Q.linear_prepack(q.reshape(4, 8).contiguous(), torch.arange(4.0)),
            Q.conv2d_prepack(q, torch.arange(4.0), [1, 1], [0, 0], [1, 1], 1),
        ]
    for obj in objects:
        bias = packed.packed_bias(obj)
        assert bias is not None
        bias.fill_(7)
        assert torch.equal(packed.packed_bias(obj), torch.arange(4.0))


def test_no_bias(way: str) -> None:
    assert packed.packed_bias(linear()) is None


@pytest.mark.parametrize("trained", [True, False])
def test_the_mark_of_a_bias_that_was_there_to_train_is_kept(way: str, trained: bool) -> None:
    """A layer without a bias, folded with its batch norm, has one without the mark; the copy is a leaf in any case."""
    bias = packed.packed_bias(linear(bias=torch.nn.Parameter(torch.ones(4), requires_grad=trained)))
    assert bias is not None
    assert bias.is_leaf
    assert bias.requires_grad is trained


@pytest.mark.parametrize("engine", [name for name in torch.backends.quantized.supported_engines if name != "none"])
def test_unpacked_integers_are_a_copy(way: str, engine: str) -> None:
    q = torch.quantize_per_tensor(torch.ones(4, 8), 0.1, 0, torch.qint8)
    with cases.engine(engine):
        obj = Q.linear_prepack(q, None)
    qdeq.unpack(obj).int_repr.fill_(99)
    assert torch.equal(qdeq.dequantize(obj), q.dequantize())


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 6])
@pytest.mark.parametrize("call", [qdeq.dequantize, qdeq.unpack])
def test_direct_conv_is_refused(way: str, call: Any, width: int) -> None:
    with cases.engine("fbgemm"):
        obj, _ = cases.direct_conv(random.Random(0), width=width)
    with pytest.raises(QdeqError, match="uninitialized memory"):
        call(obj)


@pytest.mark.parametrize("engine", ["onednn", "qnnpack"])
def test_direct_shape_of_other_engines_is_read(way: str, engine: str) -> None:
    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this torch has no {engine}")
    q = torch.quantize_per_tensor(torch.randn(16, 8, 2, 2), 0.1, 0, torch.qint8)
    with cases.engine(engine):
        obj = Q.conv_transpose2d_prepack(q, None, [2, 2], [0, 0], [0, 0], [1, 1], 1)
    assert torch.equal(qdeq.dequantize(obj), q.dequantize())


def test_qnnpack_conv3d_is_one_clear_error(way: str) -> None:
    if "qnnpack" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch has no qnnpack")
    q = torch.quantize_per_tensor(torch.randn(8, 8, 3, 3, 3), 0.1, 0, torch.qint8)
    with cases.engine("qnnpack"):
        obj = Q.conv3d_prepack(q, None, [1] * 3, [0] * 3, [1] * 3, 1)
    for call in (qdeq.dequantize, qdeq.unpack, packed.packed_bias):
        with pytest.raises(QdeqError, match=r"expected a packed weight that torch can unpack, got .*QNNPACK"):
            call(obj)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 1e39, 1e-50])
def test_bad_scales(way: str, scale: float) -> None:
    obj = linear(scale)
    with pytest.raises(QdeqValueError, match=r"^dequantize: expected scales"):
        qdeq.dequantize(obj)
    with pytest.raises(QdeqValueError, match=r"^dequantize: expected scales"):
        qdeq.dequantize(obj, out=torch.empty(4, 8))
    result = qdeq.dequantize(obj, allow_bad_scales=True)
    assert torch.equal(result.view(torch.int32), obj.unpack()[0].dequantize().view(torch.int32))


def test_bad_scale_of_an_embedding(way: str) -> None:
    scale = torch.tensor([0.5, 0.0, 0.5])
    q = torch._make_per_channel_quantized_tensor(torch.ones(3, 8, dtype=torch.uint8), scale, torch.zeros(3), 0)
    obj = Q.embedding_bag_prepack(q)
    with pytest.raises(QdeqValueError, match=r"^dequantize: expected scales .* in channel 1"):
        qdeq.dequantize(obj)
    assert torch.equal(qdeq.dequantize(obj, allow_bad_scales=True), q.dequantize())


def test_denormal_scale_is_fine(way: str) -> None:
    obj = linear(1e-42)
    assert torch.equal(qdeq.dequantize(obj), obj.unpack()[0].dequantize())


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.empty(8, 4), "expected shape"),
        (torch.empty(4, 8, dtype=torch.float64), "expected dtype"),
        (torch.empty(4, 8, requires_grad=True), "require grad"),
        (torch.zeros((4, 8), dtype=torch.complex64).conj().imag, "negated view"),
        (torch.empty(1, 8).expand(4, 8), "overlap"),
        (torch.empty(4, 8, device="meta"), "on cpu"),
    ],
    ids=["shape", "dtype", "grad", "negated", "overlap", "device"],
)
def test_bad_out(way: str, out: torch.Tensor, message: str) -> None:
    with pytest.raises(QdeqValueError, match=rf"^dequantize: out: .*{message}"):
        qdeq.dequantize(linear(), out=out)


def test_out_that_is_no_tensor(way: str) -> None:
    with pytest.raises(QdeqTypeError, match="out"):
        qdeq.dequantize(linear(), out=[1.0])  # type: ignore[arg-type]


def test_unknown_dtype(way: str) -> None:
    with pytest.raises(QdeqValueError, match="dtype"):
        qdeq.dequantize(linear(), dtype=torch.int32)


def test_not_a_packed_weight() -> None:
    for call in (packed.dequantize_packed, packed.unpack_packed):
        with pytest.raises(QdeqTypeError, match=r"^here: expected a packed weight, got"):
            call(torch.nn.Linear(2, 2), where="here")
    with pytest.raises(QdeqTypeError, match="expected a packed weight"):
        packed.packed_bias(3)


FORK = """
import os
import torch
import qdeq
torch.backends.quantized.engine = "fbgemm"
q = torch._make_per_tensor_quantized_tensor(torch.ones(2000, 2000, dtype=torch.int8), 0.1, 0)
obj = torch.ops.quantized.linear_prepack(q, None)
before = qdeq.dequantize(obj)  # starts the threads
pid = os.fork()
if pid == 0:
    os._exit(0 if bool((qdeq.dequantize(obj).numpy() == before.numpy()).all()) else 1)
assert os.waitpid(pid, 0)[1] == 0
"""


def test_works_in_a_forked_child() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], check=True, timeout=600)
