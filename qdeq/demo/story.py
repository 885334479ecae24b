"""The story from start to end: train, quantize, save, load back, copy by name, rebuild with qdeq, compare."""

from __future__ import annotations

import contextlib
import copy
import json
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from qdeq.convert import dequantize_model
from qdeq.demo.chapters import CHAPTERS, Row, Run
from qdeq.demo.data import Images, load_cifar10, load_digits
from qdeq.demo.model import ENGINE, VGG11, load_int8, prepare, to_int8
from qdeq.demo.naive import copy_in_place, copy_through_state_dict
from qdeq.demo.save import Folder
from qdeq.demo.train import FULL, QUICK, Recipe, logits_of, train
from qdeq.errors import QdeqValueError, expected

__all__ = ["Options", "tell"]


@dataclass(frozen=True)
class Options:
    """What the command line asked for; see ``python -m qdeq.demo --help``."""

    data: str = "digits"
    data_dir: Path | None = None
    download: bool = False
    quick: bool = False
    epochs: int | None = None
    seed: int = 0
    save: Path | None = None
    force: bool = False

    def recipe(self) -> Recipe:
        """Choose the recipe, with the number of epochs that was asked for."""
        recipe = QUICK if self.quick else FULL
        return recipe if self.epochs is None else replace(recipe, epochs=self.epochs)

    def images(self) -> tuple[Images, Images]:
        """Read the images to train on and those to test on."""
        if self.data == "cifar10":
            return load_cifar10(self.data_dir or Path(), self.download)
        return load_digits()


def tell(options: Options, console: Console) -> int:
    """Run everything and print it.

    Args:
        options: what to do.
        console: where to print.

    Returns:
        0, or 1 if the run does not bear out what it should: the problems are printed.

    Raises:
        QdeqValueError: data or folder cannot be used; nothing was trained yet.

    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_engine())
        stack.enter_context(_torchs_own_warnings_silenced())
        if options.save is None:
            folder = Folder(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qdeq-demo-"))), force=False)
        else:
            folder = Folder(options.save, options.force)
        run = _run(options, folder, console)
        results: dict[str, object] = {"data": options.data, "seed": options.seed, "torch": torch.__version__}
        problems: list[str] = []
        for chapter in CHAPTERS:
            outcome = chapter(run, console)
            results.update(outcome.facts)
            problems += outcome.problems
        results["problems"] = problems
        folder.write("results.json", lambda path: path.write_text(json.dumps(results, indent=2) + "\n"))
        if options.save is not None:
            console.print(f"Saved in {folder.path}.", soft_wrap=True)
    for problem in problems:
        console.print(f"FAILED: {problem}.", style="bold red")
    if not problems:
        console.print(
            "The float model that qdeq rebuilt holds the int8 model's weights and biases, bit for bit.",
            style="bold green",
        )
    return 1 if problems else 0


def _run(options: Options, folder: Folder, console: Console) -> Run:
    recipe = options.recipe()
    train_images, test_images = options.images()
    side = test_images.side
    console.print(
        f"{recipe.name} on {options.data}: {len(train_images):,} images to train on, {len(test_images):,} to test on, "
        f"{side} x {side} pixels.\nSeed {options.seed}, engine {ENGINE}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads.",
        soft_wrap=True,
    )

    def network(seed: int) -> VGG11:
        torch.manual_seed(seed)
        return VGG11(512 * (side // 32) ** 2, recipe.hidden, recipe.batch_norm)

    model, prepared = _train_both(network(options.seed), recipe, train_images, options.seed, console)
    converted = to_int8(prepared)
    folder.write("float.pt", lambda path: torch.save(model.state_dict(), path))
    saved = folder.write("int8.pt", lambda path: torch.save(converted.state_dict(), path))
    # Other seeds than the training's: a network born from the same seed hides what was not copied into it.
    int8 = load_int8(saved, like=network(options.seed + 1))
    int8_logits = logits_of(int8, test_images)
    _check_loaded(int8_logits, logits_of(converted, test_images))
    console.print(f"  int8 model saved ({saved.stat().st_size / 1e6:.1f} MB) and loaded back: the same logits")

    first, second = network(options.seed + 1), network(options.seed + 2)
    untouched = copy.deepcopy(first)
    copied = copy_through_state_dict(int8, first)
    copy_in_place(int8, second)
    start = time.perf_counter()
    rebuilt, report = dequantize_model(int8, return_report=True)
    console.print(f"  qdeq.dequantize_model: {1000 * (time.perf_counter() - start):.0f} ms\n")
    folder.write("dequantized.pt", lambda path: torch.save(rebuilt.state_dict(), path))
    folder.write("report.json", lambda path: path.write_text(report.to_json() + "\n"))

    def row(name: str, logits: Tensor) -> Row:
        return Row.of(name, logits, int8_logits, test_images.labels)

    int8_row = row(f"int8 ({ENGINE})", int8_logits)
    rebuilt_row = row("qdeq.dequantize_model", logits_of(rebuilt, test_images))
    rows = [
        row("float, as trained", logits_of(model, test_images)),
        row("QAT (fake-quantized)", logits_of(prepared, test_images)),
        int8_row,
        row("fresh network, nothing copied", logits_of(untouched, test_images)),
        row("copy by name, load_state_dict", logits_of(first, test_images)),
        row("copy by name, in place", logits_of(second, test_images)),
        rebuilt_row,
    ]
    return Run(rows, int8_row, rebuilt_row, int8, rebuilt, (first, second), copied)


def _train_both(model: VGG11, recipe: Recipe, images: Images, seed: int, console: Console) -> tuple[VGG11, VGG11]:
    """Train in float, then train a fake-quantized copy; both are returned."""
    stage = partial(train, images=images, batch_size=recipe.batch_size, seed=seed, console=console)
    seconds = stage(model, title="float", epochs=recipe.epochs, learning_rate=recipe.learning_rate)
    prepared = prepare(model)
    seconds += stage(prepared, title="QAT", epochs=recipe.qat_epochs, learning_rate=recipe.qat_learning_rate)
    console.print(f"  trained in {seconds:.0f} s")
    return model, prepared


def _check_loaded(loaded: Tensor, converted: Tensor) -> None:
    if not torch.equal(loaded, converted):
        what = expected("int8.pt", "the logits of the model that was saved", "others", "The file did not keep it.")
        raise QdeqValueError(what)


@contextlib.contextmanager
def _engine() -> Iterator[None]:
    supported = torch.backends.quantized.supported_engines
    if ENGINE not in supported:
        what = expected("the demo", f"a torch with the engine {ENGINE}", supported, "Run it on an x86 machine.")
        raise QdeqValueError(what)
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = ENGINE
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


@contextlib.contextmanager
def _torchs_own_warnings_silenced() -> Iterator[None]:
    """Silence what torch says about its own observers and dtypes: the reader cannot act on it."""
    with warnings.catch_warnings():
        for message in (
            "Please use quant_min and quant_max",
            "torch.quantize_per_tensor, torch.quantize_per_channel and other",
            "torch.ao.quantization is deprecated",
            "must run observer before calling calculate_qparams",
            "TypedStorage is deprecated",
        ):
            warnings.filterwarnings("ignore", message=message)
        yield
