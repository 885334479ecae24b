"""Finds every quantized module of a model and rebuilds it, or says of all that cannot be rebuilt why not."""

from __future__ import annotations

from typing import TypeAlias

from torch import nn

from qdeq.errors import QdeqError, QdeqValueError, expected
from qdeq.report import Unconverted
from qdeq.sources.eager.build import Build, Builder
from qdeq.sources.eager.carry_over import Rebuilt
from qdeq.sources.eager.classes.conv import read_ahead
from qdeq.sources.eager.mappings import BUILDERS
from qdeq.sources.eager.recognise import is_quantized_module
from qdeq.sources.eager.registry import find_builder
from qdeq.tree.walk import plain_values
from qdeq.words import class_name, join

__all__ = ["rebuild_all"]


def rebuild_all(model: nn.Module, build: Build, strict: bool) -> list[Rebuilt]:
    """Rebuild every known quantized module once; collect everything that cannot be rebuilt into one error."""
    rebuilt: list[Rebuilt] = []
    unknown: list[Unconverted] = []
    failures: list[QdeqError] = []
    found = _walk(model)
    read_ahead((module for _, module, _, builder, _ in found if builder is BUILDERS.get(type(module))), build)
    for path, module, parent, builder, quantized in found:
        if builder is not None:
            try:
                rebuilt.append(Rebuilt(path, module, parent, builder(module, path, build)))
            except QdeqError as error:
                failures.append(_named(error, path))
            except Exception as error:  # noqa: BLE001 (a broken module may raise anything, and all are named at once)
                failures.append(_unreadable(module, path, error))
        elif quantized:
            unknown.append(Unconverted(path, class_name(module), "no builder is registered for this class"))
    if unknown and strict:
        names = "; ".join(f"{item.path or 'the model itself'} is {item.module_class}" for item in unknown)
        remedy = "Teach it with qdeq.register, or pass strict=False to keep them quantized."
        failures.append(QdeqValueError(expected("model", "only quantized modules that qdeq knows", names, remedy)))
    if not rebuilt and not unknown and not failures and strict:
        remedy = "It is a float model already; pass strict=False for a copy."
        raise QdeqValueError(expected("model", "at least one quantized module", "none", remedy))
    if len(failures) == 1:
        raise failures[0]
    if failures:
        lines = "".join(f"\n- {failure}" for failure in failures)
        raise QdeqValueError(f"model: expected modules that can be rebuilt, got {len(failures)} problems.{lines}")
    build.report.unconverted.extend(unknown)
    return rebuilt


def _named(error: QdeqError, path: str) -> QdeqError:
    return error if str(error).startswith(path) else type(error)(f"{path}: {error}")


def _unreadable(module: nn.Module, path: str, error: Exception) -> QdeqError:
    what = f"a {class_name(module)} that can be read"
    remedy = "It may be half converted, or torch cannot unpack it on this engine: convert it again."
    failure = QdeqValueError(expected(path or "model", what, f"{type(error).__name__}: {error}", remedy))
    failure.__cause__ = error
    return failure


_Found: TypeAlias = tuple[str, nn.Module, nn.Module, Builder | None, bool]


def _walk(model: nn.Module) -> list[_Found]:
    """(path, module, parent, builder, is quantized) once per module; registered ones first, then plain attributes.

    Does not enter modules that have a builder or are quantized themselves.
    """
    found: list[_Found] = []
    seen: set[int] = set()
    entered: list[tuple[str, nn.Module]] = []

    def visit(path: str, module: nn.Module, parent: nn.Module) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        builder = find_builder(type(module))
        quantized = builder is not None or is_quantized_module(module)
        found.append((path, module, parent, builder, quantized))
        if not quantized:
            entered.append((path, module))
            for name, child in module._modules.items():
                if child is not None:
                    visit(join(path, name), child, module)

    visit("", model, model)
    for path, module in entered:  # grows while it runs
        for name, value in plain_values(module):
            if isinstance(value, nn.Module):
                visit(join(path, name), value, module)
    return found
