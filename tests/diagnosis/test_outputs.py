"""Text, JSON, HTML and plots."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

import qdeq
from tools.faults import mutate

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# A page in a screenshot is more than this many bytes of PNG; an empty one is a few thousand.
LEAST_SCREENSHOT = 15_000


@pytest.fixture(scope="module")
def explanation(small, images):
    mutant = mutate("weight_not_copied", small, 1)
    return qdeq.explain(mutant.int8, mutant.float_model, (images, small.int8(images).argmax(1)))


def test_text_is_made_for_80_columns(explanation, small):
    for text in (str(explanation), str(qdeq.explain(small.int8, small.rebuilt))):
        assert max(map(len, text.splitlines())) <= 80
    assert str(explanation).replace("\n", " ").startswith(explanation.verdict)


def test_json_is_strict_and_complete(explanation, tmp_path):
    text = explanation.to_json(tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text() == text + "\n"
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["schema"] == "qdeq.explanation/1"
    assert content["agrees"] is False
    assert set(content["findings"][0]) == {"module", "kind", "message", "evidence", "share", "repair", "remedy"}
    assert content["findings"][0]["kind"] == "weight_not_copied"
    assert content == json.loads(json.dumps(explanation.to_dict()))


@pytest.mark.parametrize("way", ["to_json", "to_html", "plot"])
def test_a_file_is_replaced_only_when_asked(explanation, tmp_path, way):
    if way == "plot":
        pytest.importorskip("matplotlib", reason="matplotlib is not installed (pip install 'qdeq[plot]')")
    write, path = getattr(explanation, way), tmp_path / "out.svg"
    path.write_text("mine")
    with pytest.raises(qdeq.QdeqValueError, match=r"out\.svg: expected no file of this name yet"):
        write(path)
    assert path.read_text() == "mine"
    write(path, force=True)
    assert path.stat().st_size > 1000
    with pytest.raises(qdeq.QdeqError, match="expected a folder to write to"):
        write(tmp_path / "missing" / "out.svg")
    assert [item.name for item in tmp_path.iterdir()] == ["out.svg"]


def test_html_loads_nothing_from_elsewhere(explanation, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (pip install 'qdeq[plot]')")
    text = explanation.to_html(tmp_path / "out.html").read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", text)
    assert "<link" not in text
    assert text.count("<svg") == 1
    assert "weight_not_copied" in text


def test_html_escapes_what_it_shows(small, tmp_path):
    explanation = qdeq.explain(small.int8, small.rebuilt)
    explanation.verdict = "<script>alert(1)</script>"
    assert "<script>alert" not in explanation.to_html(tmp_path / "out.html").read_text()


def test_html_opens_in_a_browser(explanation, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(BROWSERS)})")
    page, picture = explanation.to_html(tmp_path / "out.html"), tmp_path / "out.png"
    # A script of the page's own kind: sort the findings by a click, so that the browser has to have run it.
    page.write_text(page.read_text().replace("</body>", "<script>document.querySelector('th').click()</script></body>"))
    base = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    tree = subprocess.run([*base, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=600, check=True)
    verdict = re.search(r'id="verdict">([^<]*)</h1>', tree.stdout)
    assert verdict is not None
    assert verdict[1] == explanation.verdict
    assert 'data-up="1"' in tree.stdout
    command = [*base, f"--screenshot={picture}", "--window-size=1200,900", page.as_uri()]
    subprocess.run(command, capture_output=True, timeout=600, check=True)
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture.stat().st_size > LEAST_SCREENSHOT


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plot_writes_a_picture(explanation, small, tmp_path, suffix):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (pip install 'qdeq[plot]')")
    for item in (explanation, qdeq.explain(small.int8, small.rebuilt)):
        assert item.plot(tmp_path / f"out.{suffix}", force=True).stat().st_size > 10_000
    with pytest.raises(qdeq.QdeqValueError, match="expected a suffix of a picture, got .unknown"):
        explanation.plot(tmp_path / "out.unknown")


def test_plot_without_matplotlib_says_what_to_install(explanation, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(qdeq.QdeqError, match=r"pip install 'qdeq\[plot\]'"):
        explanation.plot(tmp_path / "out.png")
    assert "No plots" in explanation.to_html(tmp_path / "out.html").read_text()
