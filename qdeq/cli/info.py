"""``qdeq info``: what was built, and what runs here."""

from __future__ import annotations

import importlib.metadata
import json
import platform

import click

from qdeq.cli.console import console, print_table

__all__ = ["info", "version"]


def version() -> str:
    """Return qdeq's version."""
    return importlib.metadata.version("qdeq")


def _facts() -> dict[str, object]:
    import torch

    import qdeq

    engines = [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]
    facts: dict[str, object] = {"qdeq": version(), "python": platform.python_version(), **qdeq.build_info()}
    facts |= {"engines": engines, "engine": torch.backends.quantized.engine, "threads": torch.get_num_threads()}
    for package in ("click", "rich"):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def info(as_json: bool) -> None:
    """Run the command; ``commands.py`` says what each option means."""
    facts = _facts()
    if as_json:
        click.echo(json.dumps(facts, indent=2, default=str))
        return
    in_place, why_not = facts.pop("packed_in_place"), facts.pop("packed_in_place_why_not")
    slow = f"unpacked by torch first, which takes 16 to 36 times as long: {why_not}"
    rows = [("packed weights", "read in place" if in_place else slow)]
    rows += [
        (name.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
        for name, value in facts.items()
    ]
    print_table(console(), ("what", "value"), rows)
