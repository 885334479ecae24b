"""What README.md and docs/cli.md show is what the command line prints."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("cli_transcript", ROOT / "tools" / "cli_transcript.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(tool) -> str:
    readme = (ROOT / "README.md").read_text()
    begin, end = tool.in_readme(readme)
    return readme[begin:end]


def test_readme_shows_what_the_tour_shows(tool):
    assert shown(tool) == tool.excerpt((ROOT / "docs" / "cli.md").read_text())


def timeless(text: str) -> str:
    return re.sub(r"in [\d.]+ s, [\d.]+ .B/s", "in N s", text)


@pytest.mark.slow
def test_the_command_line_still_prints_it(tool, tmp_path):
    """A fresh run of the commands; only seconds may differ."""
    tool.make_files(tmp_path)
    status, blocks = 0, []
    for command in tool.EXCERPT:
        if "trained" in command:
            tool.make_trained(tmp_path)
        text, status = tool.on_terminal(command, tmp_path, status)
        blocks.append(f"$ {command}\n{text}")
    assert timeless("\n\n".join(blocks)) == timeless(shown(tool))
