"""Bars: on a terminal's stderr, or on the console that is given, and nowhere else."""

from __future__ import annotations

import io
import sys

import pytest
import torch

from qdeq.cli import explain
from qdeq.cli.console import BYTES, COUNTS, console, progress


class Screen(io.StringIO):
    def isatty(self):
        return True


def on_screen(monkeypatch) -> Screen:
    """Make stderr a terminal. Not a fixture: pytest's capture sets stderr anew before each test."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr", Screen())
    return sys.stderr


@pytest.mark.parametrize(("columns", "said"), [(BYTES, "/3.0 kB"), (COUNTS, "/3000")])
def test_a_bar_on_a_terminal(monkeypatch, columns, said):
    screen = on_screen(monkeypatch)
    with progress("working", 3000, columns=columns) as advance:
        advance("first", 1000)
    assert "working" in screen.getvalue()
    assert said in screen.getvalue()


def test_no_bar_into_a_pipe(capsys):
    with progress("working", 3000) as advance:
        advance("first", 3000)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_console_of_ones_own(monkeypatch):
    screen = on_screen(monkeypatch)
    mine = Screen()
    with progress("working", 3000, on=console(mine)):
        pass
    assert "working" in mine.getvalue()
    assert screen.getvalue() == ""


def test_long_data_of_explain_moves_a_bar(monkeypatch):
    screen = on_screen(monkeypatch)
    inputs, labels = torch.arange(300.0).view(300, 1), torch.arange(300)
    parts = list(explain._with_progress((inputs, labels)))
    assert torch.equal(torch.cat([part[0] for part in parts]), inputs)
    assert torch.equal(torch.cat([part[1] for part in parts]), labels)
    assert "running both models" in screen.getvalue()
    assert "300/300" in screen.getvalue()
    assert torch.equal(torch.cat(list(explain._with_progress(inputs))), inputs)
    short = inputs[:255]
    assert explain._with_progress(short) is short


def test_long_data_of_explain_is_left_alone_without_a_terminal():
    data = torch.zeros(300, 1)
    assert explain._with_progress(data) is data
