"""What a builder of the user's own made, as a layer: checked, and answerable for its sources itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn

from qdeq.errors import QdeqTypeError, QdeqValueError, expected
from qdeq.layers.layer import Layer
from qdeq.report import Report
from qdeq.sources.eager.describe import BIAS, Context, Describe
from qdeq.sources.eager.recognise import is_quantized_module, quantized_sources
from qdeq.tree.walk import every_module, own_tensors
from qdeq.words import class_name, join

__all__ = ["UserBuilder", "registered"]

UserBuilder: TypeAlias = Callable[[Any, str, Report], nn.Module]

# Sizes that a quantized module and its float form declare under the same name.
_SIZES = (
    *("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "num_embeddings"),
    *("embedding_dim", "num_features", "normalized_shape", "input_size", "hidden_size", "num_layers"),
)


def registered(builder: UserBuilder) -> Describe:
    """Describe modules by what ``builder`` makes of them."""

    def describe_registered(module: Any, path: str, context: Context) -> Layer:
        result = builder(module, path, context.report)
        _check_result(result, module, path)
        layer = Layer(path, class_name(module), type(result), made=result)
        _take_account(layer, module)
        return layer

    return describe_registered


def _check_result(result: object, module: nn.Module, path: str) -> None:
    where, remedy = path or "model", f"Correct the builder registered for {class_name(module)}."
    if not isinstance(result, nn.Module):
        raise QdeqTypeError(expected(where, "a torch.nn.Module from its builder", class_name(result), remedy))
    for name, part in result.named_modules():
        if is_quantized_module(part):
            raise QdeqValueError(
                expected(join(path, name) if name else where, "a float module", class_name(part), remedy)
            )
    for size in _SIZES:
        have, want = getattr(result, size, None), getattr(module, size, None)
        if have is not None and want is not None and have != want:
            raise QdeqValueError(expected(where, f"{size}={want} from its builder", f"{have}", remedy))
    own = {tensor.untyped_storage().data_ptr() for tensor in _tensors(module)}
    for name, tensor in [*result.named_parameters(), *result.named_buffers()]:
        source = getattr(module, name, None)
        if isinstance(source, Tensor) and source.shape != tensor.shape:
            got = f"{tuple(tensor.shape)}"
            raise QdeqValueError(expected(join(path, name), f"shape {tuple(source.shape)}", got, remedy))
        if tensor.numel() and not tensor.is_meta and tensor.untyped_storage().data_ptr() in own:
            got = "the memory of the quantized module"
            raise QdeqValueError(expected(join(path, name), "a tensor of its own", got, remedy + " Clone it."))


def _tensors(module: nn.Module) -> list[Any]:
    tensors = [tensor for _, part in every_module(module) for _, tensor in own_tensors(part)]
    return [tensor for tensor in tensors if tensor.numel() and not tensor.is_meta]


def _take_account(layer: Layer, module: nn.Module) -> None:
    """A registered builder answers for its sources."""
    reason = "left to the registered builder"
    for prefix, part in every_module(module):
        for name, _ in quantized_sources(part):
            at = join(layer.path, join(prefix, name) if prefix else name)
            layer.read += [at, at + BIAS]
        for name, _ in own_tensors(part):
            layer.drop(join(prefix, name), reason)
        if hasattr(part, "scale") and hasattr(part, "zero_point"):
            layer.drop(join(prefix, "scale"), reason)
            layer.drop(join(prefix, "zero_point"), reason)
