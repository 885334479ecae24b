"""Static and dynamic quantized ConvTranspose1d/2d/3d -> ``nn.ConvTranspose1d/2d/3d``."""

from __future__ import annotations

from typing import Any

import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
from torch import nn

from qdeq.errors import QdeqValueError
from qdeq.layers.layer import Later, Layer, Source
from qdeq.sources.eager.classes.conv import begin_conv
from qdeq.sources.eager.describe import BIAS, Context, Describe, Rule, add_output, add_packed
from qdeq.weights.direct_conv import lost_weight, recover_weight
from qdeq.weights.packed import is_direct_conv, packed_bias
from qdeq.words import join

__all__ = ["RULES"]


def _add_lost_weight(layer: Layer, packed: Any, shape: tuple[int, ...], context: Context) -> None:
    """Add the weight of a convolution that torch cannot give back, if the caller says that it can be recovered."""
    where = join(layer.path, "weight")
    if not context.recover_direct_conv:
        raise QdeqValueError(lost_weight(where))
    held, bias = join(layer.path, "_packed_params"), packed_bias(packed, where=join(layer.path, "bias"))
    layer.args["bias"] = bias is not None
    layer.add("weight", Source(where, Later(lambda: recover_weight(packed, shape, where=where)), held))
    if bias is not None:
        layer.add("bias", Source(join(layer.path, "bias"), bias, held + BIAS))
    layer.notes.append("weight recovered by running fbgemm's direct convolution; right only if never copied or loaded")


def _describe(kind: Any, *, dynamic: bool) -> Describe:
    def describe_conv_transpose(module: Any, path: str, context: Context) -> Layer:
        layer, packed = begin_conv(kind, module, path), module._packed_params
        if is_direct_conv(packed):
            shape = (module.in_channels, module.out_channels // module.groups, *module.kernel_size)
            _add_lost_weight(layer, packed, shape, context)
        else:
            add_packed(layer, packed, "_packed_params")
        add_output(layer, module, packed=packed, dynamic=dynamic)
        return layer

    return describe_conv_transpose


_ONEDNN = "onednn's own forward is wrong, its weight is right"
_2D = f"fbgemm's direct form (kernel (2, 1..6)) needs recover_direct_conv=True; {_ONEDNN}"
_3D = f"torch cannot read it back from qnnpack; {_ONEDNN}"

RULES: dict[type[nn.Module], Rule] = {
    nnq.ConvTranspose1d: Rule(_describe(nn.ConvTranspose1d, dynamic=False), "nn.ConvTranspose1d", _ONEDNN),
    nnq.ConvTranspose2d: Rule(_describe(nn.ConvTranspose2d, dynamic=False), "nn.ConvTranspose2d", _2D),
    nnq.ConvTranspose3d: Rule(_describe(nn.ConvTranspose3d, dynamic=False), "nn.ConvTranspose3d", _3D),
    nnqd.ConvTranspose1d: Rule(_describe(nn.ConvTranspose1d, dynamic=True), "nn.ConvTranspose1d", _ONEDNN),
    nnqd.ConvTranspose2d: Rule(_describe(nn.ConvTranspose2d, dynamic=True), "nn.ConvTranspose2d", _2D),
    nnqd.ConvTranspose3d: Rule(_describe(nn.ConvTranspose3d, dynamic=True), "nn.ConvTranspose3d", _3D),
}
