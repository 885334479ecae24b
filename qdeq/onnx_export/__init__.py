"""An int8 torch model to an ONNX file with its own integers, scales and zero points.

:mod:`to_onnx` is the way through: the model is rebuilt in float with its roundings, :mod:`tracing` lets torch export
that, :mod:`integers` and :mod:`fold` put the integers back, :mod:`roundings` and :mod:`biases` lay QuantizeLinear and
DequantizeLinear where ONNX Runtime's fusion looks for them.
"""
