"""Static and dynamic quantized ConvTranspose1d/2d/3d -> ``nn.ConvTranspose1d/2d/3d``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
from torch import nn

from qdeq.modules.build import Build, Rule
from qdeq.modules.conv import unused_qparams
from qdeq.packed import packed_bias

__all__ = ["RULES"]


def _builder(layer_class: Any, *, dynamic: bool) -> Callable[[Any, str, Build], Any]:
    def build_conv_transpose(module: Any, path: str, build: Build) -> Any:
        packed = module._packed_params
        layer = layer_class(
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            stride=module.stride,
            padding=module.padding,
            output_padding=module.output_padding,
            dilation=module.dilation,
            groups=module.groups,
            bias=packed_bias(packed) is not None,
            padding_mode=module.padding_mode,
            device="meta",
        )
        build.weight(packed, module, path, layer)
        build.packed_bias(packed, module, path, layer)
        if dynamic:
            unused_qparams(module, path, build)
        else:
            build.output_qparams(module, path)
        return layer

    return build_conv_transpose


_ONEDNN = "onednn's own forward is wrong, its weight is right"
_3D = f"torch cannot read it back from qnnpack; {_ONEDNN}"

RULES: dict[type[nn.Module], Rule] = {
    nnq.ConvTranspose1d: Rule(_builder(nn.ConvTranspose1d, dynamic=False), "nn.ConvTranspose1d", _ONEDNN),
    nnq.ConvTranspose2d: Rule(_builder(nn.ConvTranspose2d, dynamic=False), "nn.ConvTranspose2d", _ONEDNN),
    nnq.ConvTranspose3d: Rule(_builder(nn.ConvTranspose3d, dynamic=False), "nn.ConvTranspose3d", _3D),
    nnqd.ConvTranspose1d: Rule(_builder(nn.ConvTranspose1d, dynamic=True), "nn.ConvTranspose1d", _ONEDNN),
    nnqd.ConvTranspose2d: Rule(_builder(nn.ConvTranspose2d, dynamic=True), "nn.ConvTranspose2d", _ONEDNN),
    nnqd.ConvTranspose3d: Rule(_builder(nn.ConvTranspose3d, dynamic=True), "nn.ConvTranspose3d", _3D),
}
