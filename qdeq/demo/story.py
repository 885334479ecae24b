"""The story from start to end: train, quantize, save, load back, copy by name, rebuild with qdeq, compare."""

from __future__ import annotations

import contextlib
import copy
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from qdeq.cli.status import DIFFERENT, DONE
from qdeq.demo.chapters import CHAPTERS, Row, Run
from qdeq.demo.data import Images, load_cifar10, load_digits
from qdeq.demo.model import ENGINE, VGG11, load_int8, prepare, to_int8
from qdeq.demo.naive import copy_in_place, copy_through_state_dict
from qdeq.demo.save import Folder
from qdeq.demo.train import FULL, QUICK, Recipe, logits_of, train
from qdeq.errors import QdeqValueError, expected
from qdeq.rebuild import dequantize_model
from qdeq.words import strict_json

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
    """Run everything and print it; return 0, or 1 if it does not bear out what it should: the problems are printed.

    Raises:
        QdeqValueError: data, folder or engine cannot be used (found before anything is trained), or a file did not
            keep what was saved.

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
        folder.write("results.json", lambda path: path.write_text(strict_json(results) + "\n"))
        if options.save is not None:
            console.print(f"Saved in {folder.path}.", soft_wrap=True)
    for problem in problems:
        console.print(f"FAILED: {problem}.", style="bold red")
    if not problems:
        console.print(
            "The float model that qdeq rebuilt holds the int8 model's weights and biases, bit for bit.",
            style="bold green",
        )
    return DIFFERENT if problems else DONE


def _run(options: Options, folder: Folder, console: Console) -> Run:
    recipe = options.recipe()
    train_images, test_images = options.images()
    side = test_images.side
    console.print(
        f"{recipe.name} on {options.data}: {len(train_images):,} images to train on, {len(test_images):,} to test on, "
        f"{side} x {side} pixels.\nSeed {options.seed}, engine {ENGINE}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads."
    )

    def network(seed: int) -> VGG11:
        torch.manual_seed(seed)
        return VGG11(512 * (side // 32) ** 2, recipe.hidden, recipe.batch_norm)

    model, prepared = _train_both(network(options.seed), recipe, train_images, options.seed, console)
    folder.write("float.pt", lambda path: torch.save(model.state_dict(), path))
    # Other seeds than the training's: a network born from the same seed hides what was not copied into it.
    untouched, second = network(options.seed + 1), network(options.seed + 2)
    int8 = _through_a_file(to_int8(prepared), untouched, test_images, folder, console)
    first = copy.deepcopy(untouched)
    copied = copy_through_state_dict(int8, first)
    copy_in_place(int8, second)
    rebuilt = _rebuild(int8, folder, console)
    int8_logits = logits_of(int8, test_images)
    rows = [
        Row.of(name, logits_of(candidate, test_images), int8_logits, test_images.labels)
        for name, candidate in (
            ("float, as trained", model),
            ("QAT (fake-quantized)", prepared),
            (f"int8 ({ENGINE})", int8),
            ("fresh network, nothing copied", untouched),
            ("copy by name, load_state_dict", first),
            ("copy by name, in place", second),
            ("qdeq.dequantize_model", rebuilt),
        )
    ]
    return Run(rows, rows[2], rows[-1], int8, rebuilt, (first, second), copied, test_images)


def _train_both(model: VGG11, recipe: Recipe, images: Images, seed: int, console: Console) -> tuple[VGG11, VGG11]:
    """Train in float, then train a fake-quantized copy; both are returned."""
    stage = partial(train, images=images, batch_size=recipe.batch_size, seed=seed, console=console)
    seconds = stage(model, title="float", epochs=recipe.epochs, learning_rate=recipe.learning_rate, one_cycle=True)
    prepared = prepare(model)
    seconds += stage(
        prepared, title="QAT", epochs=recipe.qat_epochs, learning_rate=recipe.qat_learning_rate, one_cycle=False
    )
    console.print(f"  trained in {seconds:.0f} s")
    return model, prepared


def _through_a_file(converted: VGG11, like: VGG11, images: Images, folder: Folder, console: Console) -> VGG11:
    """Save the int8 model, load it back and see that it gives the same logits."""
    saved = folder.write("int8.pt", lambda path: torch.save(converted.state_dict(), path))
    loaded = load_int8(saved, like)
    if not torch.equal(logits_of(loaded, images), logits_of(converted, images)):
        what = expected("int8.pt", "the logits of the model that was saved", "others", "Check the disk it is on.")
        raise QdeqValueError(what)
    console.print(f"  int8 model saved ({saved.stat().st_size / 1e6:.1f} MB) and loaded back: the same logits")
    return loaded


def _rebuild(int8: VGG11, folder: Folder, console: Console) -> nn.Module:
    start = time.perf_counter()
    rebuilt, report = dequantize_model(int8, return_report=True)
    console.print(f"  qdeq.dequantize_model: {1000 * (time.perf_counter() - start):.0f} ms")
    folder.write("dequantized.pt", lambda path: torch.save(rebuilt.state_dict(), path))
    folder.write("report.json", lambda path: path.write_text(report.to_json() + "\n"))
    return rebuilt


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
