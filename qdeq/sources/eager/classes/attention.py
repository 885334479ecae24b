"""Quantized and quantizable MultiheadAttention -> ``nn.MultiheadAttention``.

torch's own ``dequantize()`` of these classes returns random projections, so it is not used.
"""

from __future__ import annotations

from typing import Any

import torch.ao.nn.quantizable as nnqa
import torch.ao.nn.quantized as nnq
from torch import nn

from qdeq.layers.layer import Layer, Source
from qdeq.layers.names import PROJECTIONS, UNUSED_PROJECTIONS, UNUSED_PROJECTIONS_REASON, projection_weights
from qdeq.sources.eager.describe import Context, Rule, add_biases, begin, drop_inner_qparams, read_linear
from qdeq.words import class_name, join

__all__ = ["RULES"]

_NAMES = ("embed_dim", "num_heads", "dropout", "add_zero_attn", "kdim", "vdim", "batch_first")


def describe_attention(module: Any, path: str, context: Context) -> Layer:
    """Describe ``linear_Q``, ``linear_K``, ``linear_V`` and ``out_proj``; bias_k and bias_v where they exist."""
    read = [read_linear(getattr(module, name), join(path, name)) for name in (*PROJECTIONS, "out_proj")]
    layer = begin(nn.MultiheadAttention, module, path, *_NAMES)
    layer.args |= {"bias": read[0][1] is not None, "add_bias_kv": module.bias_k is not None}
    _add_projections(layer, module, read)
    for name in ("bias_k", "bias_v"):
        if getattr(module, name) is not None:
            layer.add_tensor(name, getattr(module, name))
    for name in UNUSED_PROJECTIONS:
        if module._parameters.get(name) is not None:
            layer.drop(name, UNUSED_PROJECTIONS_REASON)
    drop_inner_qparams(layer, module)
    if module.batch_first and module.num_heads > 1:
        layer.notes.append("torch's quantized forward mixes the heads when batch_first; the float one does not")
    return layer


def _add_projections(layer: Layer, module: Any, read: list[tuple[Source, Source | None]]) -> None:
    has_bias = layer.args["bias"]
    names = projection_weights(one_width=module.kdim == module.vdim == module.embed_dim)
    for name in dict.fromkeys(names):
        layer.add(name, *(weight for own, (weight, _) in zip(names, read[:3], strict=True) if own == name))
    add_biases(layer, "in_proj_bias", [bias for _, bias in read[:3]], declared=has_bias)
    weight, bias = read[3]
    layer.add("out_proj.weight", weight, source_class=class_name(module.out_proj))
    add_biases(layer, "out_proj.bias", [bias], declared=has_bias, source_class=class_name(module.out_proj))


_LINEARS = "with float or quantized Linears inside"
_NOTE = "torch's quantized forward is wrong with batch_first and several heads"

RULES: dict[type[nn.Module], Rule] = {
    nnq.MultiheadAttention: Rule(describe_attention, "nn.MultiheadAttention", _NOTE),
    nnqa.MultiheadAttention: Rule(describe_attention, "nn.MultiheadAttention", _LINEARS),
}
