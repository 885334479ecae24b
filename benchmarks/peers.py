"""Other programs' ways to compute float(q - zero_point) * scale. Each returns a call that fills ``out``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def onnx_runtime(ints: Tensor, scale: Tensor, zero_point: Tensor, axis: int, out: Tensor) -> Callable[[], object]:
    """DequantizeLinear with input and output bound to the given memory."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    kind = TensorProto.INT8 if ints.dtype == torch.int8 else TensorProto.UINT8
    node = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=axis)
    inputs = [
        helper.make_tensor_value_info("q", kind, list(ints.shape)),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, list(scale.shape)),
        helper.make_tensor_value_info("z", kind, list(scale.shape)),
    ]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, list(out.shape))
    graph = helper.make_graph([node], "dequantize", inputs, [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    keep = [ints.numpy(), scale.float().numpy(), zero_point.to(ints.dtype).numpy()]
    for name, array in zip("qsz", keep, strict=True):
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    binding.bind_output("y", "cpu", 0, out.numpy().dtype, out.shape, out.data_ptr())

    def run(keep: object = keep) -> None:
        session.run_with_iobinding(binding)

    return run


def openvino(ints: Tensor, scale: Tensor, zero_point: Tensor, axis: int, out: Tensor) -> Callable[[], object]:
    """Convert, Subtract, Multiply compiled for the CPU, with the given input and output memory."""
    import openvino as ov
    from openvino import opset13 as ops

    shape = [1] * ints.dim()
    shape[axis] = -1
    source = ops.parameter(list(ints.shape), ov.Type.i8, name="q")
    centred = ops.subtract(ops.convert(source, "f32"), ops.constant(zero_point.float().reshape(shape).numpy()))
    model = ov.Model(
        [ops.multiply(centred, ops.constant(scale.float().reshape(shape).numpy()))], [source], "dequantize"
    )
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(ints.numpy(), shared_memory=True))
    request.set_output_tensor(ov.Tensor(out.numpy(), shared_memory=True))
    return request.infer


def numexpr(ints: Tensor, scale: Tensor, zero_point: Tensor, axis: int, out: Tensor) -> Callable[[], object]:
    """One fused pass; numexpr's threads as torch's."""
    import numexpr as ne

    ne.set_num_threads(torch.get_num_threads())
    shape = [1] * ints.dim()
    shape[axis] = -1
    names = {
        "q": ints.numpy(),
        "z": zero_point.int().reshape(shape).numpy(),
        "s": scale.float().reshape(shape).numpy(),
    }
    return lambda: ne.evaluate("(q - z) * s", local_dict=names, out=out.numpy(), casting="same_kind")


def numpy(ints: Tensor, scale: Tensor, zero_point: Tensor, axis: int, out: Tensor) -> Callable[[], object]:
    """Two passes over the result."""
    import numpy as np

    shape = [1] * ints.dim()
    shape[axis] = -1
    q, z, s, y = (
        ints.numpy(),
        zero_point.float().reshape(shape).numpy(),
        scale.float().reshape(shape).numpy(),
        out.numpy(),
    )

    def run() -> None:
        np.subtract(q, z, out=y, dtype=np.float32)
        np.multiply(y, s, out=y)

    return run


def compiled(ints: Tensor, scale: Tensor, zero_point: Tensor, axis: int, out: Tensor) -> Callable[[], object]:
    """torch.compile of the formula, copied into ``out`` by the same kernel."""
    shape = [1] * ints.dim()
    shape[axis] = -1
    z, s = zero_point.float().reshape(shape), scale.float().reshape(shape)

    @torch.compile(fullgraph=True, dynamic=False)
    def formula(q: Tensor, z: Tensor, s: Tensor, out: Tensor) -> None:
        out.copy_((q.float() - z) * s)

    return lambda: formula(ints, z, s, out)


ALL = {
    "ONNX Runtime": onnx_runtime,
    "OpenVINO": openvino,
    "torch.compile": compiled,
    "numexpr": numexpr,
    "numpy": numpy,
}
