"""Quantized Embedding and EmbeddingBag -> ``nn.Embedding`` and ``nn.EmbeddingBag``."""

from __future__ import annotations

from typing import Any

import torch.ao.nn.quantized as nnq
from torch import nn

from qdeq.errors import QdeqValueError, expected
from qdeq.sources.eager.build import Build, Rule

__all__ = ["RULES"]


def build_embedding(module: Any, path: str, build: Build) -> nn.Embedding:
    """Rebuild ``nnq.Embedding``, 8 or 4 bits; weight (num_embeddings, embedding_dim).

    torch's quantized class keeps neither ``padding_idx`` nor ``max_norm``: the padding row is in the weight.
    """
    layer = nn.Embedding(module.num_embeddings, module.embedding_dim, device="meta")
    build.weight(module._packed_params._packed_weight, module, path, layer)
    return layer


def build_embedding_bag(module: Any, path: str, build: Build) -> nn.EmbeddingBag:
    """Rebuild ``nnq.EmbeddingBag``, 8 or 4 bits; weight (num_embeddings, embedding_dim)."""
    if module.pruned_weights:
        remedy = "Expand the pruned rows, then convert the model again."
        raise QdeqValueError(expected(path, "an EmbeddingBag with all its rows", "one with pruned weights", remedy))
    layer = nn.EmbeddingBag(
        module.num_embeddings,
        module.embedding_dim,
        mode=module.mode,
        include_last_offset=module.include_last_offset,
        device="meta",
    )
    build.weight(module._packed_params._packed_weight, module, path, layer)
    if module.mode != "sum":
        build.report.note(path, f"quantized EmbeddingBag sums in every mode; the float one takes the {module.mode}")
    return layer


_NOT_KEPT = "8 and 4 bits (torch has no 2-bit module); torch's class does not keep padding_idx and max_norm"

RULES: dict[type[nn.Module], Rule] = {
    nnq.Embedding: Rule(build_embedding, "nn.Embedding", _NOT_KEPT),
    nnq.EmbeddingBag: Rule(
        build_embedding_bag,
        "nn.EmbeddingBag",
        f"{_NOT_KEPT}; the quantized one sums in every mode, the float one obeys",
    ),
}
