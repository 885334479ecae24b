"""Quantized Embedding and EmbeddingBag -> ``nn.Embedding`` and ``nn.EmbeddingBag``."""

from __future__ import annotations

from typing import Any

import torch.ao.nn.quantized as nnq
from torch import nn

from qdeq.errors import QdeqValueError, expected
from qdeq.layers.layer import Layer
from qdeq.sources.eager.describe import Context, Rule, begin, packed_sources

__all__ = ["RULES"]


def _begin(kind: Any, module: Any, path: str, *names: str) -> Layer:
    layer = begin(kind, module, path, "num_embeddings", "embedding_dim", *names)
    packed = module._packed_params._packed_weight
    layer.add("weight", packed_sources(packed, path, "_packed_params._packed_weight")[0])
    return layer


def describe_embedding(module: Any, path: str, context: Context) -> Layer:
    """Describe ``nnq.Embedding``, 8 or 4 bits; weight (num_embeddings, embedding_dim).

    torch's quantized class keeps neither ``padding_idx`` nor ``max_norm``: the padding row is in the weight.
    """
    return _begin(nn.Embedding, module, path)


def describe_embedding_bag(module: Any, path: str, context: Context) -> Layer:
    """Describe ``nnq.EmbeddingBag``, 8 or 4 bits; weight (num_embeddings, embedding_dim)."""
    if module.pruned_weights:
        remedy = "Expand the pruned rows, then convert the model again."
        raise QdeqValueError(expected(path, "an EmbeddingBag with all its rows", "one with pruned weights", remedy))
    layer = _begin(nn.EmbeddingBag, module, path, "mode", "include_last_offset")
    if module.mode != "sum":
        layer.notes.append(f"quantized EmbeddingBag sums in every mode; the float one takes the {module.mode}")
    return layer


_NOT_KEPT = "8 and 4 bits (torch has no 2-bit module); torch's class does not keep padding_idx and max_norm"
_BAG = f"{_NOT_KEPT}; the quantized one sums in every mode, the float one obeys"

RULES: dict[type[nn.Module], Rule] = {
    nnq.Embedding: Rule(describe_embedding, "nn.Embedding", _NOT_KEPT),
    nnq.EmbeddingBag: Rule(describe_embedding_bag, "nn.EmbeddingBag", _BAG),
}
