"""Training and evaluation."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich.console import Console
from torch import Tensor, nn

from qdeq.cli.console import COUNTS, Advance, progress
from qdeq.demo.data import Images

__all__ = ["FULL", "QUICK", "Recipe", "logits_of", "train"]


@dataclass(frozen=True)
class Recipe:
    """What to train and for how long."""

    name: str  # the architecture, as shown to the reader
    batch_norm: bool  # use ``vgg11_bn``'s features
    hidden: int  # width of the classifier's hidden layer
    epochs: int  # passes over the images in float
    learning_rate: float  # the highest, in float: it rises and falls once
    qat_epochs: int  # passes of quantization-aware training
    qat_learning_rate: float  # all through quantization-aware training
    batch_size: int = 64  # images per step


FULL = Recipe("VGG11", False, 4096, epochs=8, learning_rate=4e-4, qat_epochs=1, qat_learning_rate=2e-5)
QUICK = Recipe("VGG11 with batch norm", True, 512, epochs=3, learning_rate=1e-3, qat_epochs=1, qat_learning_rate=1e-4)


def train(
    model: nn.Module,
    images: Images,
    *,
    title: str,
    epochs: int,
    learning_rate: float,
    one_cycle: bool,
    batch_size: int,
    seed: int,
    console: Console,
) -> float:
    """Train a float or prepared model where it is and return the seconds that it took.

    Adam, on images that are moved a little each time; ``seed`` is that of their order and moves. With ``one_cycle``
    the learning rate rises to ``learning_rate`` and falls once; otherwise it stays. It shows how it goes, by the name
    ``title``: a bar on a terminal, a line per epoch anywhere.
    """
    start = time.perf_counter()
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    random = torch.Generator().manual_seed(seed)
    steps = -(-len(images) // batch_size)
    total = epochs * steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=total) if one_cycle else None
    for epoch in range(1, epochs + 1):
        name = f"{title}, epoch {epoch}/{epochs}"
        with progress(name, steps, columns=COUNTS, on=console) as advance:
            loss, hits = _epoch(model, images.batches(batch_size, random), optimizer, schedule, advance)
        console.print(
            f"  {name}: loss {loss / len(images):.4f}, "
            f"training accuracy {100 * hits / len(images):.1f} %, {time.perf_counter() - start:.0f} s"
        )
    return time.perf_counter() - start


def _epoch(
    model: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler | None,
    advance: Advance,
) -> tuple[float, int]:
    """Pass over all images once; their losses' sum, and how many were classified right."""
    loss_sum, hits = torch.zeros(()), 0
    for batch, labels in batches:
        logits = model(batch)
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if schedule is not None:
            schedule.step()
        loss_sum += loss.detach() * len(labels)
        hits += int((logits.detach().argmax(1) == labels).sum())
        advance("batches", 1)
    return loss_sum.item(), hits


@torch.no_grad()
def logits_of(model: nn.Module, images: Images, batch_size: int = 64) -> Tensor:
    """Logits (count, 10) of all images, float32.

    A copy of the model is run: ``eval()`` does not stop the observers of a prepared model, so that running the
    model itself would change it.
    """
    model = copy.deepcopy(model).eval()
    return torch.cat([model(batch) for batch, _ in images.batches(batch_size)])
