"""The operators themselves: kernel choice, fake kernels, torch.compile, opcheck, the last fence."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading

import pytest
import torch

import qdeq
from qdeq.weights import native as ops
from tests.helpers.tensors import assert_same_bits, random_quantized


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def run_with_kernel(name):
    code = "import qdeq; print(qdeq.current_kernel())"
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ | {"QDEQ_KERNEL": name},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_kernels_lists_scalar_last_and_the_current_one():
    names = qdeq.kernels()
    print("kernel sets on this machine:", names)
    assert names[-1] == "scalar"
    assert len(set(names)) == len(names)
    assert qdeq.current_kernel() in names


def test_use_kernel_as_function_and_context_manager():
    automatic = qdeq.current_kernel()
    for name in qdeq.kernels():
        with qdeq.use_kernel(name):
            assert qdeq.current_kernel() == name
            with qdeq.use_kernel(None):
                assert qdeq.current_kernel() == qdeq.kernels()[0]
            assert qdeq.current_kernel() == name
    assert qdeq.current_kernel() == automatic
    qdeq.use_kernel("scalar")
    try:
        assert qdeq.current_kernel() == "scalar"
        assert qdeq.build_info()["current_kernel"] == "scalar"
    finally:
        qdeq.use_kernel(None)


def test_unknown_kernels_are_refused():
    before = qdeq.current_kernel()
    for bad in ("sse9", "", 3):
        with pytest.raises(qdeq.QdeqValueError, match="scalar"):
            qdeq.use_kernel(bad)
    assert qdeq.current_kernel() == before


def test_the_variable_chooses_and_is_checked():
    assert run_with_kernel("scalar").stdout.strip() == "scalar"
    refused = run_with_kernel("sse9")
    assert refused.returncode != 0
    assert "QDEQ_KERNEL: expected one of" in refused.stderr


def test_build_info_names_what_runs():
    info = qdeq.build_info()
    assert info["torch"] == torch.__version__
    assert info["kernels"] == qdeq.kernels()
    assert info["last_level_cache_bytes"] > 0
    assert info["packed_in_place"] is (info["packed_in_place_why_not"] == "")


def test_fresh_strides_are_those_of_torch():
    """Fake and native rules agree with torch, on ambiguous shapes too (sizes of 0 and 1)."""
    for shape in itertools.product((0, 1, 2, 3), repeat=4):
        for order in ((0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 2, 3)):
            base = torch.zeros([shape[d] for d in order], dtype=torch.int8)
            q = torch._make_per_tensor_quantized_tensor(base, 0.5, 0).permute([order.index(d) for d in range(4)])
            want = q.dequantize()
            assert ops.fresh_strides(q.shape, q.stride()) == want.stride(), (shape, order)
            assert qdeq.dequantize(q).stride() == want.stride(), (shape, order)
    for order in ((0, 2, 3, 4, 1), (0, 1, 2, 3, 4), (0, 3, 4, 2, 1)):
        base = torch.zeros([(2, 3, 1, 4, 5)[d] for d in order], dtype=torch.int8)
        q = torch._make_per_tensor_quantized_tensor(base, 0.5, 0).permute([order.index(d) for d in range(5)])
        assert qdeq.dequantize(q).stride() == q.dequantize().stride(), order


def op_arguments(shape=(4, 6), axis=0):
    w = qdeq.unpack(random_quantized(shape, torch.qint8, axis, generator(), true_double=True))
    return w, (w.int_repr, w.scale, w.zero_point, axis, list(shape), 8, torch.float32, False)


def test_opcheck():
    _, arguments = op_arguments()
    torch.library.opcheck(torch.ops.qdeq.dequantize.default, arguments)
    torch.library.opcheck(torch.ops.qdeq.dequantize_out.default, (*arguments, torch.empty(4, 6)))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_has_no_graph_break(backend):
    for shape, axis, dtype in [((4, 6), 0, torch.qint8), ((3, 5, 2, 2), 1, torch.quint8), ((8,), None, torch.quint4x2)]:
        torch._dynamo.reset()
        w = qdeq.unpack(random_quantized(shape, dtype, axis, generator()))
        want = w.dequantize() * 2

        @torch.compile(fullgraph=True, backend=backend)
        def method(weight):
            return weight.dequantize() * 2

        @torch.compile(fullgraph=True, backend=backend)
        def function(weight):
            return qdeq.dequantize(weight) * 2

        @torch.compile(fullgraph=True, backend=backend)
        def into(weight, out):
            return weight.dequantize(out=out) * 2

        @torch.compile(fullgraph=True, backend=backend)
        def operator(ints, scale, zero_point, w=w, axis=axis, shape=shape):
            bits = w.integers.bits
            return ops.dequantize(ints, scale, zero_point, axis=axis, shape=shape, bits=bits) * 2

        assert_same_bits(method(w), want)
        assert_same_bits(function(w), want)
        assert_same_bits(into(w, torch.empty(shape)), want)
        assert_same_bits(operator(w.int_repr, w.scale, w.zero_point), want)


def test_fake_tensors_have_the_strides_of_real_ones():
    from torch._subclasses.fake_tensor import FakeTensorMode

    q = random_quantized((4, 6, 5, 3), torch.qint8, 0, generator()).contiguous(memory_format=torch.channels_last)
    w = qdeq.unpack(q)
    with FakeTensorMode() as mode:
        parts = [mode.from_tensor(t) for t in (w.int_repr, w.scale, w.zero_point)]
        fake = ops.dequantize(*parts, axis=0, shape=w.shape, bits=8, dtype=torch.bfloat16)
    assert fake.stride() == q.dequantize().stride()
    assert fake.dtype == torch.bfloat16


def test_the_last_fence_holds_without_python_checks():
    w, arguments = op_arguments()
    wrong = {
        0: [w.int_repr.float(), w.int_repr[:3]],
        1: [w.scale[:3], w.scale.int(), w.scale.repeat(2)[::2]],
        2: [w.zero_point[:3], w.zero_point + 1000, w.zero_point.double()],
        3: [2, -2, 1],
        4: [[4, 7], [4, 6, 1]],
        5: [4, 2],
        6: [torch.float64],
    }
    for position, values in wrong.items():
        for value in values:
            changed = [*arguments]
            changed[position] = value
            with pytest.raises(RuntimeError):
                torch.ops.qdeq.dequantize.default(*changed)
    for out in (torch.empty(4, 7), torch.empty(4, 6, dtype=torch.float64), torch.empty(1, 6).expand(4, 6)):
        with pytest.raises(RuntimeError):
            torch.ops.qdeq.dequantize_out.default(*arguments, out)


def test_many_threads_at_once():
    q = random_quantized((300, 1001), torch.qint8, 0, generator(), true_double=True)
    want = q.dequantize()
    failures = []

    def work():
        for _ in range(20):
            if not torch.equal(qdeq.dequantize(q), want):
                failures.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_other_threads_run_while_a_small_tensor_is_dequantized():
    """No thread can make another give up the interpreter here: it has to be given away."""
    q = random_quantized((1024, 2048), torch.qint8, 0, generator())  # half of what the short way takes
    out, gate, ran = torch.empty(1024, 2048), threading.Lock(), []
    assert ops.dequantize_direct(q, out) is out
    gate.acquire()

    def other():
        with gate:
            ran.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        gate.release()
        for _ in range(200):
            ops.dequantize_direct(q, out)
            if ran:
                break
        assert ran
    finally:
        sys.setswitchinterval(interval)
        thread.join()


def test_large_memory_is_what_torch_would_give():
    for shape in ((3, 5), (0, 7), (), (1 << 10, 1 << 9), torch.Size((3, 1 << 22))):
        for dtype in ops.OUT_DTYPES:
            memory = ops.empty(shape, dtype)
            assert memory.shape == torch.Size(shape)
            assert memory.dtype == dtype
            assert memory.is_contiguous()
            memory.fill_(1)
