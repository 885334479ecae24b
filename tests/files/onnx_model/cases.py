"""A small quantized model as a file: one convolution per channel, one linear layer in 4 bits, float biases."""

from __future__ import annotations

import numpy as np

from tests.onnx_graphs.models import model, node, onnx, random


def small_model():
    rng = random(3)
    held = {
        "conv.weight_quantized": rng.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8),
        "conv.weight_scale": rng.uniform(0.01, 0.02, 8).astype(np.float32),
        "conv.bias": rng.normal(size=8).astype(np.float32),
        "fc.weight_quantized": onnx.helper.make_tensor(
            "fc.weight_quantized", onnx.TensorProto.INT4, (8, 6), rng.integers(-8, 8, 48).tolist()
        ),
        "fc.weight_scale": np.float32(0.1),
        "table": rng.normal(size=(40, 16)).astype(np.float32),
        "s": np.float32(0.05),
        "z": np.uint8(0),
        "axes": np.array([2, 3]),
    }
    nodes = [
        node("DequantizeLinear", "conv.weight_quantized conv.weight_scale", "w", "W", axis=0),
        node("Conv", "x w conv.bias", "c", "conv"),
        node("QuantizeLinear", "c s z", "q", "Q"),
        node("DequantizeLinear", "q s z", "d", "D"),
        node("ReduceMean", "d axes", "p", keepdims=0),
        node("DequantizeLinear", "fc.weight_quantized fc.weight_scale", "f", "F"),
        node("MatMul", "p f", "y", "fc"),
        node("Gather", "table i", "e"),
    ]
    return model(nodes, {"x": (2, 3, 6, 6), "i": (2,)}, {"y": 2, "e": 2}, held, types={"i": 7})


def feeds():
    return {"x": random(4).normal(size=(2, 3, 6, 6)).astype(np.float32), "i": np.array([3, 9])}


def save_apart(made, folder, name="model.onnx", at_least=16):
    """Save with every tensor of ``at_least`` bytes in one file beside the model."""
    path = folder / name
    onnx.save(made, path, save_as_external_data=True, location=f"{name}.weights", size_threshold=at_least)
    return path
