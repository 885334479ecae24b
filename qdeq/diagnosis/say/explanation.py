"""What :func:`qdeq.explain` and :func:`qdeq.compare` return: the results with the ways to write them out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qdeq.diagnosis.results import ExplanationData, Layer, Outcome
from qdeq.diagnosis.say.html import explanation_html
from qdeq.diagnosis.say.plot import picture
from qdeq.diagnosis.say.text import comparison_text, explanation_text
from qdeq.files.new_files import NewFiles
from qdeq.words import strict_json

__all__ = ["Comparison", "Explanation"]

SCHEMA_VERSION = 1


class _Result:
    """Writing a result out: shared by both result types."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain dicts, lists, strings, numbers, booleans and None."""
        raise NotImplementedError

    def to_json(self, path: str | Path | None = None, *, indent: int | None = 2, force: bool = False) -> str:
        """Return the result as strict JSON; infinities and NaN become strings.

        Args:
            path: file to write the text to as well; it appears complete or not at all.
            indent: spaces per level, None for one line.
            force: replace a file that is there.

        Raises:
            QdeqValueError: a file is in the way.
            QdeqError: the file cannot be written.

        """
        text = strict_json(self.to_dict(), indent)
        if path is not None:
            _write(path, f"{text}\n".encode(), force)
        return text


@dataclass
class Comparison(_Result):
    """The table of :func:`qdeq.compare`.

    Attributes:
        layers: one row per module that both models run, in the first model's order.
        outcome: the outputs of both models.
        unmatched: dotted paths that only one of the models runs.

    """

    layers: list[Layer]
    outcome: Outcome
    unmatched: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return schema: ``schema``, ``layers`` (fields of Layer), ``outcome`` (fields of Outcome), ``unmatched``."""
        return {"schema": f"qdeq.comparison/{SCHEMA_VERSION}", **asdict(self)}

    def __str__(self) -> str:
        return comparison_text(self.layers, self.outcome, self.unmatched)


@dataclass
class Explanation(_Result, ExplanationData):
    """The answer of :func:`qdeq.explain`.

    Attributes:
        findings: worst first; layers that are right come last, as ``rounding``.
        layers: one row per layer; empty with ``layers=False``.
        verdict: one sentence.
        outcome: the outputs of both models; None without data.
        first_divergence: dotted path of the first layer where the outputs part (SQNR below 10 dB); None if none does.
        cumulative: ``(modules and kind, share of the disagreement that is gone)`` while the findings are put right one
            after the other; empty without data.
        regained: kind -> share of the lost accuracy (without labels: of the lost top-1 agreement) that comes back when
            all findings of the kind are put right; empty without data, or where less than 2 % was lost.
        unmatched: quantized modules without a partner in the float model.

    """

    def to_dict(self) -> dict[str, Any]:
        """Return the explanation as plain data; ``docs/explain.md`` gives the schema."""
        content = asdict(self)
        del content["histograms"]
        content["cumulative"] = [{"repaired": name, "gone": gone} for name, gone in self.cumulative]
        return {"schema": f"qdeq.explanation/{SCHEMA_VERSION}", "agrees": self.agrees, **content}

    def to_html(self, path: str | Path, *, force: bool = False) -> Path:
        """Write one self-contained HTML file: sortable tables and the plots, nothing loaded from elsewhere.

        Args:
            path: the file; it appears complete or not at all.
            force: replace a file that is there.

        Raises:
            QdeqValueError: a file is in the way.
            QdeqError: the file cannot be written.

        """
        return _write(path, explanation_html(self).encode(), force)

    def plot(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the plots as one picture; needs matplotlib.

        Args:
            path: the file; the suffix gives the format (.png, .svg, .pdf).
            force: replace a file that is there.

        Raises:
            QdeqValueError: a file is in the way, or its suffix is no picture format.
            QdeqError: matplotlib is not installed, or the file cannot be written.

        """
        return _write(path, picture(self, Path(path).suffix), force)

    def __str__(self) -> str:
        return explanation_text(self)


def _write(path: str | Path, content: bytes, force: bool) -> Path:
    target = Path(path)
    with NewFiles([target], force=force, size=len(content)) as new:
        new.write(target, content, 0)
        new.commit()
    return target
