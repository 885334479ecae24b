"""Which builder turns a class into its float form: the project's own list, and what users add to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn

from qdeq.errors import QdeqTypeError, QdeqValueError, expected
from qdeq.report import Report, ReportEntry
from qdeq.sources.eager.build import Build, Builder
from qdeq.sources.eager.mappings import BUILDERS
from qdeq.sources.eager.recognise import is_quantized_module, quantized_sources
from qdeq.words import class_name, join

__all__ = ["UserBuilder", "find_builder", "register"]

UserBuilder: TypeAlias = Callable[[Any, str, Report], nn.Module]

_REGISTERED: dict[type[nn.Module], Builder] = {}
# Sizes that a quantized module and its float form declare under the same name.
_SIZES = (
    *("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "num_embeddings"),
    *("embedding_dim", "num_features", "normalized_shape", "input_size", "hidden_size", "num_layers"),
)


def register(quantized_class: type[nn.Module], builder: UserBuilder) -> None:
    """Teach :func:`qdeq.dequantize_model` a quantized class of your own.

    The class is matched exactly: a subclass needs its own call. Registering a class again replaces its builder, also
    where qdeq has one itself.

    Args:
        quantized_class: the class of the quantized module.
        builder: called as ``builder(module, path, report)`` with the quantized module, its dotted path and the
            :class:`qdeq.Report` of the conversion; returns a new float module that shares no memory with ``module``.
            Every parameter it returns is listed in the report by itself; ``report.note(path, text)`` adds words.

    Raises:
        QdeqTypeError: ``quantized_class`` is not a module class, or ``builder`` cannot be called.

    """
    if not (isinstance(quantized_class, type) and issubclass(quantized_class, nn.Module)):
        remedy = "Pass the class itself, not an instance."
        got = quantized_class.__name__ if isinstance(quantized_class, type) else class_name(quantized_class)
        raise QdeqTypeError(expected("quantized_class", "a subclass of torch.nn.Module", got, remedy))
    if not callable(builder):
        remedy = "Pass a function builder(module, path, report) that returns a float module."
        raise QdeqTypeError(expected("builder", "a function", class_name(builder), remedy))
    _REGISTERED[quantized_class] = _checked(builder)


def find_builder(quantized_class: type[nn.Module]) -> Builder | None:
    """The builder of exactly this class; one that was registered goes before the project's own."""
    return _REGISTERED.get(quantized_class) or BUILDERS.get(quantized_class)


def _checked(builder: UserBuilder) -> Builder:
    def build_registered(module: Any, path: str, build: Build) -> nn.Module:
        result = builder(module, path, build.report)
        _check_result(result, module, path)
        _take_account(result, module, path, build)
        return result

    return build_registered


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
    return [tensor for tensor in [*module.parameters(), *module.buffers()] if tensor.numel() and not tensor.is_meta]


def _take_account(result: nn.Module, module: nn.Module, path: str, build: Build) -> None:
    """A registered builder answers for its sources; what it wrote is listed under the names of the target."""
    for prefix, part in module.named_modules():
        for _, value in quantized_sources(part):
            build.use(value)
            build.use_bias(value)
        for name, _ in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            build.drop(path, join(prefix, name), "left to the registered builder")
        if hasattr(part, "scale") and hasattr(part, "zero_point"):
            build.drop(path, join(prefix, "scale"), "left to the registered builder")
            build.drop(path, join(prefix, "zero_point"), "left to the registered builder")
    for name, parameter in result.named_parameters():
        entry = ReportEntry(
            target=join(path, name),
            source=path or "model",
            source_class=class_name(module),
            target_class=class_name(result),
            shape=tuple(parameter.shape),
            dtype="",
            note="written by the registered builder",
        )
        build.report.entries.append(entry)
