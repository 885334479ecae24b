"""One short run of the whole demo, shared by the tests: few images, little training, everything else as it is."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from qdeq.demo import data, story
from qdeq.demo.__main__ import main
from qdeq.demo.data import Images


def first(images: Images, count: int) -> Images:
    return replace(images, pixels=images.pixels[:count], labels=images.labels[:count])


@pytest.fixture(scope="session")
def few_digits() -> tuple[Images, Images]:
    train, test = data.load_digits()
    return first(train, 128), first(test, 50)


@dataclass(frozen=True)
class ShortRun:
    status: int
    output: str
    errors: str
    folder: Path
    seeds: list[int]

    @property
    def results(self) -> dict:
        return json.loads((self.folder / "results.json").read_text())


@pytest.fixture(scope="session")
def short_run(few_digits: tuple[Images, Images], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShortRun]:
    """``--quick --epochs 1 --seed 5 --save`` on a few digits; ``seeds`` are those that networks were born from."""
    import contextlib
    import io

    seeds: list[int] = []

    class Recorded(story.VGG11):
        def __init__(self, *args: object) -> None:
            seeds.append(torch.initial_seed())
            super().__init__(*args)

    folder = tmp_path_factory.mktemp("demo") / "kept"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(story, "load_digits", lambda: few_digits)
        patch.setattr(story, "VGG11", Recorded)
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            status = main(["--quick", "--epochs", "1", "--seed", "5", "--save", str(folder)])
    return ShortRun(status, output.getvalue(), errors.getvalue(), folder, seeds)
