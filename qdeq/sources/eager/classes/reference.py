"""Reference quantized modules, which hold a float weight and its scales -> plain ``nn`` modules.

The result holds the quantized-and-dequantized weight, which is what the module computes with, not the master weight.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.ao.nn.quantized.reference as nnqr
from torch import Tensor, nn
from torch.ao.nn.quantized.reference.modules.rnn import get_quantized_weight

from qdeq.layers.layer import Later, Layer, Source
from qdeq.sources.eager.classes.conv import begin_conv
from qdeq.sources.eager.classes.rnn import begin_cell, begin_rnn
from qdeq.sources.eager.describe import Context, Describe, Rule, begin
from qdeq.words import join

__all__ = ["BAG", "RULES", "TABLE"]

_QSCHEMES = (torch.per_tensor_affine, torch.per_channel_affine, torch.per_channel_affine_float_qparams)


def _weight(module: Any, name: str) -> Tensor:
    """The quantized weight, or the float one where the module's dtype leaves it float."""
    if getattr(module, f"{name}_qscheme", None) not in _QSCHEMES:
        value: Tensor = getattr(module, name).detach()
    elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
        value = get_quantized_weight(module, name)  # type: ignore[no-untyped-call]
    elif module.is_decomposed:
        value = module.get_weight().detach()
    else:
        value = module.get_quantized_weight()
    return value


def _reference(start: Callable[..., Layer], kind: Any, *names: str) -> Describe:
    """Describe a reference module by a layer that ``start(kind, module, path, *names)`` begins."""

    def describe_reference(module: Any, path: str, context: Context) -> Layer:
        layer = start(kind, module, path, *names)
        _fill(layer, module)
        return layer

    return describe_reference


def _fill(layer: Layer, module: Any) -> None:
    """Add every parameter of a reference module, which are those of the float one; its weights are quantized."""
    if "bias" in module._parameters:
        layer.args["bias"] = module.bias is not None
    for name, value in module._parameters.items():
        if value is None:
            continue
        if name.startswith("weight"):
            layer.add(name, Source(join(layer.path, name), Later(functools.partial(_weight, module, name))))
        else:
            layer.add_tensor(name, value)
        for suffix in ("scale", "zero_point", "axis"):
            if f"{name}_{suffix}" in module._buffers:
                layer.drop(f"{name}_{suffix}", "quantization of the weight, applied to it")


TABLE = ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
BAG = ("mode", "include_last_offset")


RULES: dict[type[nn.Module], Rule] = {
    nnqr.Linear: Rule(_reference(begin, nn.Linear, "in_features", "out_features"), "nn.Linear"),
    nnqr.Conv1d: Rule(_reference(begin_conv, nn.Conv1d), "nn.Conv1d"),
    nnqr.Conv2d: Rule(_reference(begin_conv, nn.Conv2d), "nn.Conv2d"),
    nnqr.Conv3d: Rule(_reference(begin_conv, nn.Conv3d), "nn.Conv3d"),
    nnqr.ConvTranspose1d: Rule(_reference(begin_conv, nn.ConvTranspose1d), "nn.ConvTranspose1d"),
    nnqr.ConvTranspose2d: Rule(_reference(begin_conv, nn.ConvTranspose2d), "nn.ConvTranspose2d"),
    nnqr.ConvTranspose3d: Rule(_reference(begin_conv, nn.ConvTranspose3d), "nn.ConvTranspose3d"),
    nnqr.Embedding: Rule(_reference(begin, nn.Embedding, *TABLE), "nn.Embedding"),
    nnqr.EmbeddingBag: Rule(_reference(begin, nn.EmbeddingBag, *TABLE, *BAG), "nn.EmbeddingBag"),
    nnqr.LSTM: Rule(_reference(begin_rnn, nn.LSTM), "nn.LSTM"),
    nnqr.GRU: Rule(_reference(begin_rnn, nn.GRU), "nn.GRU"),
    nnqr.LSTMCell: Rule(_reference(begin_cell, nn.LSTMCell), "nn.LSTMCell"),
    nnqr.GRUCell: Rule(_reference(begin_cell, nn.GRUCell), "nn.GRUCell"),
    nnqr.RNNCell: Rule(_reference(begin_cell, nn.RNNCell), "nn.RNNCell"),
}
