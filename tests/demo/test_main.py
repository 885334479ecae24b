import importlib.util
import subprocess
import sys

import pytest

from qdeq.demo import story
from qdeq.demo.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "mnist"], "invalid choice"),
        (["--data", "cifar10"], "go together"),
        (["--data-dir", "x"], "go together"),
        (["--download"], "--download is for"),
        (["--force"], "--force is for"),
        (["--epochs", "0"], "expected 1 or more, got 0"),
        (["--seed", "one"], "invalid int"),
    ],
)
def test_wrong_arguments_are_status_2(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main([]) == 2
    message = capsys.readouterr().err
    assert "rich, sklearn, torchvision" in message
    assert 'pip install "qdeq[demo]"' in message


def test_engine_that_torch_lacks_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(story, "ENGINE", "enginetta")
    assert main([]) == 2
    assert "enginetta" in capsys.readouterr().err


def test_options_reach_the_recipe():
    assert story.Options(quick=True).recipe().batch_norm
    assert story.Options(epochs=9).recipe().epochs == 9
    assert story.Options().recipe().hidden == 4096


def test_help_names_every_option():
    done = subprocess.run([sys.executable, "-m", "qdeq.demo", "--help"], capture_output=True, text=True, check=True)
    for option in ("--data", "--data-dir", "--download", "--quick", "--epochs", "--seed", "--save", "--force"):
        assert option in done.stdout
