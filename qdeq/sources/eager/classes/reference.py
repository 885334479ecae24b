"""Reference quantized modules, which hold a float weight and its scales -> plain ``nn`` modules.

The result holds the quantized-and-dequantized weight, which is what the module computes with, not the master weight.
"""

from __future__ import annotations

import functools
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

__all__ = ["RULES"]

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


def _fill(layer: Layer, module: Any) -> Layer:
    """Add every parameter of a reference module, which are those of the float one; its weights are quantized."""
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
    return layer


_TABLE = ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")


def _plain(kind: Any, *names: str, has_bias: bool = False) -> Describe:
    """Describe a reference module whose float class has the arguments ``names``."""

    def describe_plain(module: Any, path: str, context: Context) -> Layer:
        args = {"bias": module.bias is not None} if has_bias else {}
        return _fill(begin(module, path, kind, *names, **args), module)

    return describe_plain


def _conv(kind: Any) -> Describe:
    def describe_conv(module: Any, path: str, context: Context) -> Layer:
        layer = begin_conv(kind, module, path)
        layer.args["bias"] = module.bias is not None
        return _fill(layer, module)

    return describe_conv


def _rnn(kind: Any) -> Describe:
    def describe_rnn(module: Any, path: str, context: Context) -> Layer:
        args = {"proj_size": module.proj_size} if module.proj_size else {}
        return _fill(begin_rnn(kind, module, path, **args), module)

    return describe_rnn


def _cell(kind: Any) -> Describe:
    def describe_cell(module: Any, path: str, context: Context) -> Layer:
        return _fill(begin_cell(kind, module, path), module)

    return describe_cell


RULES: dict[type[nn.Module], Rule] = {
    nnqr.Linear: Rule(_plain(nn.Linear, "in_features", "out_features", has_bias=True), "nn.Linear"),
    nnqr.Conv1d: Rule(_conv(nn.Conv1d), "nn.Conv1d"),
    nnqr.Conv2d: Rule(_conv(nn.Conv2d), "nn.Conv2d"),
    nnqr.Conv3d: Rule(_conv(nn.Conv3d), "nn.Conv3d"),
    nnqr.ConvTranspose1d: Rule(_conv(nn.ConvTranspose1d), "nn.ConvTranspose1d"),
    nnqr.ConvTranspose2d: Rule(_conv(nn.ConvTranspose2d), "nn.ConvTranspose2d"),
    nnqr.ConvTranspose3d: Rule(_conv(nn.ConvTranspose3d), "nn.ConvTranspose3d"),
    nnqr.Embedding: Rule(_plain(nn.Embedding, *_TABLE), "nn.Embedding"),
    nnqr.EmbeddingBag: Rule(_plain(nn.EmbeddingBag, *_TABLE, "mode", "include_last_offset"), "nn.EmbeddingBag"),
    nnqr.LSTM: Rule(_rnn(nn.LSTM), "nn.LSTM"),
    nnqr.GRU: Rule(_rnn(nn.GRU), "nn.GRU"),
    nnqr.LSTMCell: Rule(_cell(nn.LSTMCell), "nn.LSTMCell"),
    nnqr.GRUCell: Rule(_cell(nn.GRUCell), "nn.GRUCell"),
    nnqr.RNNCell: Rule(_cell(nn.RNNCell), "nn.RNNCell"),
}
