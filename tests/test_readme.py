"""What the README and the pages it links say can be found and run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.house import none_of

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "csrc").glob("*.md")])
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*_*.yml"))
# A name in backticks with a slash and the end of a file or folder. <family> and * stand for something else.
PATH = re.compile(r"`((?:[\w.-]+/)+(?:[\w.-]+\.(?:py|pyi|h|cpp|inl|md|yml|txt|toml))?)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    """As seen from the root, from the package or from the page's own folder."""
    if page.name == "CHANGELOG.md":
        return  # speaks of what was
    named = set(PATH.findall(page.read_text()))
    roots = (ROOT, ROOT / "qdeq", ROOT / "csrc", page.parent, *(ROOT / "qdeq").rglob("*/"))
    missing = {path for path in named if not any((root / path).exists() for root in roots)}
    none_of("pages", [f"{path}: {page.name} names it" for path in missing])


def test_a_report_of_a_fault_brings_what_qdeq_says_of_itself():
    assert len(TEMPLATES) >= 3
    for template in TEMPLATES:
        assert "qdeq info --json" in template.read_text(), template.name
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "qdeq", "info", "--json"], capture_output=True, text=True, check=True
    )
    assert {"qdeq", "python", "torch", "kernels", "current_kernel"} <= set(json.loads(done.stdout))


def test_every_variable_that_is_read_is_in_contributing():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    for file in [*(ROOT / "qdeq").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        for name in re.findall(r"environ(?:\.get\(|\[)\"(QDEQ_\w+)\"", file.read_text()):
            assert f"| `{name}` |" in page, f"{file}: {name}"


def test_the_tensor_example_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    (example,) = [block for block in blocks if "quantize_per_channel" in block]
    names: dict = {}
    exec(example, names)
    assert torch.equal(names["w"].view(torch.int32), names["q"].dequantize().view(torch.int32))


def test_every_make_target_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"\bmake ([a-z]+)\b(?=[\s`])", page.read_text()):
            if f"`make {target}" in page.read_text() or f"\nmake {target}" in page.read_text():
                assert re.search(rf"^{target}:", makefile, flags=re.M), f"{page.name}: make {target}"
