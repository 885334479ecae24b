"""Static and dynamic quantized ConvTranspose1d/2d/3d -> ``nn.ConvTranspose1d/2d/3d``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
from torch import nn

from qdeq.errors import QdeqValueError
from qdeq.sources.eager.build import Build, Rule
from qdeq.sources.eager.classes.conv import empty_conv, unused_qparams
from qdeq.weights.direct_conv import lost_weight, recover_weight
from qdeq.weights.packed import is_direct_conv
from qdeq.words import join

__all__ = ["RULES"]


def _source(packed: Any, shape: tuple[int, ...], path: str, build: Build) -> Any:
    """The packed weight, or what could be recovered of one that torch cannot give back."""
    if not is_direct_conv(packed):
        return packed
    where = join(path, "weight")
    if not build.recover_direct_conv:
        raise QdeqValueError(lost_weight(where))
    build.use(packed)
    build.report.note(
        path, "weight recovered by running fbgemm's direct convolution; right only if never copied or loaded"
    )
    return recover_weight(packed, shape, where=where)


def _builder(layer_class: Any, *, dynamic: bool) -> Callable[[Any, str, Build], Any]:
    def build_conv_transpose(module: Any, path: str, build: Build) -> Any:
        packed = module._packed_params
        bias = build.read_bias(packed, path)
        layer = empty_conv(layer_class, module, bias is not None)
        build.weight(_source(packed, tuple(layer.weight.shape), path, build), module, path, layer)
        build.biases([("bias", bias)], module, path, layer, "bias")
        if dynamic:
            unused_qparams(module, path, build)
        else:
            build.output_qparams(module, path)
        return layer

    return build_conv_transpose


_ONEDNN = "onednn's own forward is wrong, its weight is right"
_2D = f"fbgemm's direct form (kernel (2, 1..6)) needs recover_direct_conv=True; {_ONEDNN}"
_3D = f"torch cannot read it back from qnnpack; {_ONEDNN}"

RULES: dict[type[nn.Module], Rule] = {
    nnq.ConvTranspose1d: Rule(_builder(nn.ConvTranspose1d, dynamic=False), "nn.ConvTranspose1d", _ONEDNN),
    nnq.ConvTranspose2d: Rule(_builder(nn.ConvTranspose2d, dynamic=False), "nn.ConvTranspose2d", _2D),
    nnq.ConvTranspose3d: Rule(_builder(nn.ConvTranspose3d, dynamic=False), "nn.ConvTranspose3d", _3D),
    nnqd.ConvTranspose1d: Rule(_builder(nn.ConvTranspose1d, dynamic=True), "nn.ConvTranspose1d", _ONEDNN),
    nnqd.ConvTranspose2d: Rule(_builder(nn.ConvTranspose2d, dynamic=True), "nn.ConvTranspose2d", _2D),
    nnqd.ConvTranspose3d: Rule(_builder(nn.ConvTranspose3d, dynamic=True), "nn.ConvTranspose3d", _3D),
}
