"""The network of the story, and its way to int8 and back from a file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from qdeq.demo.vision import import_torchvision

__all__ = ["VGG11", "load_int8", "prepare", "to_int8"]

ENGINE = "fbgemm"
NUM_CLASSES = 10


class VGG11(nn.Module):
    """torchvision's VGG11 features and a short classifier between a quant and a dequant stub.

    Args:
        feature_output_size: values per image after the features: 512 for 32 x 32 images, 25088 for 224 x 224.
        hidden: width of the classifier's hidden layer.
        batch_norm: take ``vgg11_bn``'s features.

    """

    def __init__(self, feature_output_size: int, hidden: int = 4096, batch_norm: bool = False) -> None:
        super().__init__()
        models = import_torchvision().models
        self.features = (models.vgg11_bn if batch_norm else models.vgg11)().features
        self.classifier = nn.Sequential(
            nn.Linear(feature_output_size, hidden), nn.ReLU(True), nn.Linear(hidden, NUM_CLASSES)
        )
        self.quant = torch.ao.quantization.QuantStub()
        self.dequant = torch.ao.quantization.DeQuantStub()

    def forward(self, images: Tensor) -> Tensor:
        """Map float32 images (n, 3, side, side) to float32 logits (n, 10)."""
        features = self.features(self.quant(images))
        logits = self.classifier(features.reshape(features.shape[0], -1))
        return cast(Tensor, self.dequant(logits))


def prepare(model: VGG11) -> VGG11:
    """Copy a float model and ready it for quantization-aware training: fake-quantized, Conv+BN+ReLU fused."""
    from torch.ao.quantization import fuse_modules_qat, get_default_qat_qconfig, prepare_qat

    prepared = copy.deepcopy(model).train()
    kinds = [type(layer) for layer in prepared.features]
    triples = [
        [f"features.{i}", f"features.{i + 1}", f"features.{i + 2}"]
        for i in range(len(kinds) - 2)
        if kinds[i : i + 3] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    ]
    if triples:
        fuse_modules_qat(prepared, [*triples, ["classifier.0", "classifier.1"]], inplace=True)  # type: ignore[no-untyped-call]
    prepared.qconfig = get_default_qat_qconfig(ENGINE)  # type: ignore[no-untyped-call]
    return cast(VGG11, prepare_qat(prepared, inplace=True))  # type: ignore[no-untyped-call]


def to_int8(prepared: VGG11) -> VGG11:
    """Convert a copy of a prepared model to int8; the prepared model is left as it is."""
    return cast(VGG11, torch.ao.quantization.convert(copy.deepcopy(prepared).eval()))  # type: ignore[no-untyped-call]


def load_int8(path: Path, like: VGG11) -> VGG11:
    """Read an int8 state dict back into an untrained float network of its architecture, quantized the same way."""
    model = to_int8(prepare(like))
    model.load_state_dict(torch.load(path, weights_only=True))
    return model
