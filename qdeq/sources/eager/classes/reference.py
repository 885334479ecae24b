"""Reference quantized modules, which hold a float weight and its scales -> plain ``nn`` modules.

The result holds the quantized-and-dequantized weight, which is what the module computes with, not the master weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.ao.nn.quantized.reference as nnqr
from torch import Tensor, nn
from torch.ao.nn.quantized.reference.modules.rnn import get_quantized_weight

from qdeq.sources.eager.build import Build, Rule
from qdeq.sources.eager.classes.conv import empty_conv
from qdeq.sources.eager.classes.rnn import make_rnn

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


def _fill(module: Any, path: str, build: Build, layer: Any, weights: Iterable[str]) -> Any:
    for name in weights:
        build.weight(_weight(module, name), module, path, layer, name)
        for suffix in ("scale", "zero_point", "axis"):
            if f"{name}_{suffix}" in module._buffers:
                build.drop(path, f"{name}_{suffix}", "quantization of the weight, applied to it")
    for name, _ in layer.named_parameters():
        if name not in weights:
            build.tensor(getattr(module, name), module, path, layer, name)
    return layer


def build_linear(module: Any, path: str, build: Build) -> nn.Linear:
    """Rebuild a reference Linear."""
    bias = module.bias is not None
    layer = nn.Linear(module.in_features, module.out_features, bias, device="meta")
    _fill(module, path, build, layer, ["weight"])
    return layer


def _conv(layer_class: Any) -> Callable[[Any, str, Build], Any]:
    def build_conv(module: Any, path: str, build: Build) -> Any:
        layer = empty_conv(layer_class, module, module.bias is not None)
        return _fill(module, path, build, layer, ["weight"])

    return build_conv


def build_embedding(module: Any, path: str, build: Build) -> nn.Embedding:
    """Rebuild a reference Embedding with all its options."""
    layer = nn.Embedding(
        module.num_embeddings,
        module.embedding_dim,
        module.padding_idx,
        module.max_norm,
        module.norm_type,
        module.scale_grad_by_freq,
        module.sparse,
        device="meta",
    )
    _fill(module, path, build, layer, ["weight"])
    return layer


def build_embedding_bag(module: Any, path: str, build: Build) -> nn.EmbeddingBag:
    """Rebuild a reference EmbeddingBag with all its options."""
    layer = nn.EmbeddingBag(
        module.num_embeddings,
        module.embedding_dim,
        module.max_norm,
        module.norm_type,
        module.scale_grad_by_freq,
        module.mode,
        module.sparse,
        include_last_offset=module.include_last_offset,
        padding_idx=module.padding_idx,
        device="meta",
    )
    _fill(module, path, build, layer, ["weight"])
    return layer


def _rnn(rnn_class: Any) -> Callable[[Any, str, Build], Any]:
    def build_rnn(module: Any, path: str, build: Build) -> Any:
        layer = make_rnn(rnn_class, module, proj_size=module.proj_size)
        weights = [name for name in layer._flat_weights_names if name.startswith("weight")]
        return _fill(module, path, build, layer, weights)

    return build_rnn


def _cell(cell_class: Any) -> Callable[[Any, str, Build], Any]:
    def build_cell(module: Any, path: str, build: Build) -> Any:
        arguments = {"nonlinearity": module.nonlinearity} if cell_class is nn.RNNCell else {}
        layer = cell_class(module.input_size, module.hidden_size, module.bias, device="meta", **arguments)
        return _fill(module, path, build, layer, ["weight_ih", "weight_hh"])

    return build_cell


RULES: dict[type[nn.Module], Rule] = {
    nnqr.Linear: Rule(build_linear, "nn.Linear"),
    nnqr.Conv1d: Rule(_conv(nn.Conv1d), "nn.Conv1d"),
    nnqr.Conv2d: Rule(_conv(nn.Conv2d), "nn.Conv2d"),
    nnqr.Conv3d: Rule(_conv(nn.Conv3d), "nn.Conv3d"),
    nnqr.ConvTranspose1d: Rule(_conv(nn.ConvTranspose1d), "nn.ConvTranspose1d"),
    nnqr.ConvTranspose2d: Rule(_conv(nn.ConvTranspose2d), "nn.ConvTranspose2d"),
    nnqr.ConvTranspose3d: Rule(_conv(nn.ConvTranspose3d), "nn.ConvTranspose3d"),
    nnqr.Embedding: Rule(build_embedding, "nn.Embedding"),
    nnqr.EmbeddingBag: Rule(build_embedding_bag, "nn.EmbeddingBag"),
    nnqr.LSTM: Rule(_rnn(nn.LSTM), "nn.LSTM"),
    nnqr.GRU: Rule(_rnn(nn.GRU), "nn.GRU"),
    nnqr.LSTMCell: Rule(_cell(nn.LSTMCell), "nn.LSTMCell"),
    nnqr.GRUCell: Rule(_cell(nn.GRUCell), "nn.GRUCell"),
    nnqr.RNNCell: Rule(_cell(nn.RNNCell), "nn.RNNCell"),
}
