"""Small networks that people's are like, each trained on synthetic data in a second or two, once a process.

    network = NETWORKS["resnet"]
    model = network.trained()                    # a copy of its own, in eval mode
    inputs, labels = network.samples(256)
    int8 = tq.convert(...)                       # network.groups(model) says what is fused

Networks of the static kind have stubs; those of the dynamic kind are for ``quantize_dynamic``.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tools.networks.images import VGG, MobileV2, MobileV3, PointNet, ResNet, UNet
from tools.networks.sequences import GRU, LSTM, WORDS, Bert

__all__ = ["NETWORKS", "Network", "learn"]

_STEPS, _BATCH = 60, 64


@dataclass(frozen=True)
class Network:
    """One network and its data: four classes, which it learns nearly without a mistake."""

    name: str
    build: Callable[[], nn.Module]
    draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]  # so many samples: inputs (n, ...), labels (n,)
    static: bool = True

    def samples(self, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Inputs (count, ...) and int64 labels (count,); the same for the same seed."""
        return self.draw(count, torch.Generator().manual_seed(seed))

    def trained(self, seed: int = 0) -> nn.Module:
        """A trained float model, in eval mode; each call gives a copy."""
        return copy.deepcopy(_trained(self.name, seed))

    def groups(self, model: nn.Module) -> list[list[str]]:
        """Modules to fuse, for ``fuse_modules``."""
        return model.groups() if self.static else []

    def accuracy(self, model: nn.Module, count: int = 256) -> float:
        """Share of right classes on samples that training did not see."""
        inputs, labels = self.samples(count, seed=10**6)
        with torch.no_grad():
            return float((model(inputs).argmax(1) == labels).double().mean())


def learn(network: Network, model: nn.Module, steps: int = _STEPS, rate: float = 1e-2, seed: int = 0) -> nn.Module:
    """Train a model, float or prepared, in place."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for step in range(steps):
        inputs, labels = network.samples(_BATCH, seed * 10**4 + step + 1)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model


@functools.cache
def _trained(name: str, seed: int) -> nn.Module:
    network = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return learn(network, network.build().train(), seed=seed).eval()


def _pictures(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(n, 3, 12, 12): one quarter is lighter or darker than the rest."""
    labels = torch.randint(4, (count,), generator=generator)
    inputs = 0.5 * torch.randn(count, 3, 12, 12, generator=generator)
    for image, label in zip(inputs, labels.tolist(), strict=True):
        a, b = divmod(label, 2)
        image[:, 6 * a : 6 * a + 6, 6 * b : 6 * b + 6] += torch.tensor([1.5, -1.0, a - b])[:, None, None]
    return inputs, labels


def _points(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(n, 3, 24): points of an ellipsoid, which is flat along one axis or none."""
    labels = torch.randint(4, (count,), generator=generator)
    inputs = torch.randn(count, 3, 24, generator=generator)
    shape = torch.ones(count, 4)
    shape[torch.arange(count), labels] = 0.2
    return inputs * shape[:, :3, None], labels


def _words(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(n, 10) int64: a quarter of the vocabulary is said more often than the rest."""
    labels = torch.randint(4, (count,), generator=generator)
    inputs = torch.randint(WORDS, (count, 10), generator=generator)
    ours = torch.rand(count, 10, generator=generator) < 0.6
    return torch.where(ours, inputs // 4 + 5 * labels[:, None], inputs), labels


NETWORKS = {
    network.name: network
    for network in (
        Network("vgg", VGG, _pictures),
        Network("resnet", ResNet, _pictures),
        Network("mobilenet_v2", MobileV2, _pictures),
        Network("mobilenet_v3", MobileV3, _pictures),
        Network("unet", UNet, _pictures),
        Network("pointnet", PointNet, _points),
        Network("lstm", LSTM, _words, static=False),
        Network("gru", GRU, _words, static=False),
        Network("bert", Bert, _words, static=False),
    )
}
