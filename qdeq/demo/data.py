"""The images: scikit-learn's handwritten digits, or CIFAR10 from a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from qdeq.demo.vision import import_torchvision
from qdeq.errors import QdeqValueError, expected

__all__ = ["Images", "load_cifar10", "load_digits"]

LARGEST_MOVES = torch.tensor([0.2, 0.1, 0.125, 0.125])  # turn in radians, zoom, shifts in half images


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images at the size they are stored in; batches are enlarged when they are asked for."""

    pixels: Tensor  # float32 or uint8, (count, 3, height, width), from 0 to ``white``
    labels: Tensor  # int64, (count,), from 0 to 9
    white: float  # the value of a white pixel: 1 or 255
    side: int  # height and width, in pixels, of the images that the network sees

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Tensor, random: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Enlarge some images, ``rows`` int64 (n,); turned, scaled and shifted a little, as drawn from ``random``.

        They are float32 (n, 3, side, side) from -1 to 1, in channels_last order; the labels are int64 (n,).
        """
        images = self.pixels[rows].float() / self.white
        size = (self.side, self.side)
        if random is None:
            images = functional.interpolate(images, size, mode="bilinear", align_corners=False)
        else:
            grid = functional.affine_grid(_small_moves(len(rows), random), [len(rows), 3, *size], align_corners=False)
            images = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
        return ((images - 0.5) / 0.5).contiguous(memory_format=torch.channels_last), self.labels[rows]

    def batches(self, size: int, random: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images once, in batches of at most ``size``: as they are, or in order and moved by ``random``."""
        order = torch.arange(len(self)) if random is None else torch.randperm(len(self), generator=random)
        for rows in order.split(size):  # type: ignore[no-untyped-call]
            yield self.batch(rows, random)


def _small_moves(count: int, random: torch.Generator) -> Tensor:
    """Draw affine maps (count, 2, 3) of coordinates that run from -1 to 1 across the image."""
    turn, zoom, right, down = (torch.rand(4, count, generator=random) * 2 - 1) * LARGEST_MOVES[:, None]
    cosine, sine = torch.cos(turn) * (1 + zoom), torch.sin(turn) * (1 + zoom)
    return torch.stack([cosine, -sine, right, sine, cosine, down], dim=1).view(count, 2, 3)


def load_digits() -> tuple[Images, Images]:
    """Read the 1797 handwritten digits that ship with scikit-learn (8 x 8 pixels); the network sees 32 x 32.

    1437 are to train on and 360 to test on, split by class and always the same way.
    """
    from sklearn.datasets import load_digits as load  # type: ignore[import-untyped]
    from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

    digits = load()
    pixels = torch.from_numpy(digits.images).float() / 16
    pixels = pixels[:, None].repeat(1, 3, 1, 1)
    labels = torch.from_numpy(digits.target).long()
    train_rows, test_rows = train_test_split(
        torch.arange(len(labels)).numpy(), test_size=360, stratify=digits.target, random_state=0
    )
    train, test = (
        Images(pixels[rows], labels[rows], white=1.0, side=32)
        for rows in (torch.from_numpy(train_rows), torch.from_numpy(test_rows))
    )
    return train, test


def load_cifar10(folder: Path, download: bool = False) -> tuple[Images, Images]:
    """Read CIFAR10 through torchvision (32 x 32 pixels), to train and to test on; the network sees 224 x 224.

    It lies in ``folder`` as ``cifar-10-batches-py``; with ``download`` torchvision fetches it (170 MB) if it does not.

    Raises:
        QdeqValueError: the files are missing or differ from the published ones.

    """
    cifar10 = import_torchvision().datasets.CIFAR10
    try:
        parts = [cifar10(root=str(folder), train=train, download=download) for train in (True, False)]
    except RuntimeError as error:
        raise QdeqValueError(
            expected(
                "--data-dir",
                "a folder that holds CIFAR10's python version, cifar-10-batches-py, complete and unchanged",
                str(folder),
                "Unpack cifar-10-python.tar.gz there, or add --download to have it fetched (170 MB).",
            )
        ) from error
    train, test = (
        Images(torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets), white=255.0, side=224)
        for part in parts
    )
    return train, test
