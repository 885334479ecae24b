"""Quantized and quantizable MultiheadAttention -> ``nn.MultiheadAttention``.

torch's own ``dequantize()`` of these classes returns random projections, so it is not used.
"""

from __future__ import annotations

from typing import Any

import torch.ao.nn.quantizable as nnqa
import torch.ao.nn.quantized as nnq
from torch import nn

from qdeq.sources.eager.build import Build, Rule
from qdeq.sources.eager.inner import drop_inner_qparams, read_linear
from qdeq.words import join

__all__ = ["RULES"]

# What the float base class declares and the quantizable one never computes with.
_UNUSED = ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def build_attention(module: Any, path: str, build: Build) -> nn.MultiheadAttention:
    """Rebuild from ``linear_Q``, ``linear_K``, ``linear_V`` and ``out_proj``; bias_k and bias_v where they exist."""
    parts = {name: read_linear(getattr(module, name), join(path, name), build) for name in _LINEARS}
    attention = nn.MultiheadAttention(
        module.embed_dim,
        module.num_heads,
        module.dropout,
        bias=parts["linear_Q"][1] is not None,
        add_bias_kv=module.bias_k is not None,
        add_zero_attn=module.add_zero_attn,
        kdim=module.kdim,
        vdim=module.vdim,
        batch_first=module.batch_first,
        device="meta",
    )
    _write_projections(parts, module, path, attention, build)
    for name in ("bias_k", "bias_v"):
        if getattr(module, name) is not None:
            build.weight(getattr(module, name), module, path, attention, name)
    for name in _UNUSED:
        if module._parameters.get(name) is not None:
            build.drop(path, name, "never used: linear_Q, linear_K and linear_V hold the projections")
    drop_inner_qparams(module, path, build)
    if module.batch_first and module.num_heads > 1:
        build.report.note(path, "torch's quantized forward mixes the heads when batch_first; the float one does not")
    return attention


_LINEARS = ("linear_Q", "linear_K", "linear_V", "out_proj")


def _write_projections(parts: dict[str, Any], module: Any, path: str, attention: Any, build: Build) -> None:
    weights = [(f"{name}.weight", parts[name][0]) for name in _LINEARS[:3]]
    if attention.in_proj_weight is not None:
        build.stack(weights, module, path, attention, "in_proj_weight")
    else:
        for letter, (name, source) in zip("qkv", weights, strict=True):
            build.weight(source, module, path, attention, f"{letter}_proj_weight", name)
    build.biases([(f"{name}.bias", parts[name][1]) for name in _LINEARS[:3]], module, path, attention, "in_proj_bias")
    out_path = join(path, "out_proj")
    build.weight(parts["out_proj"][0], module.out_proj, out_path, attention.out_proj)
    build.biases([("bias", parts["out_proj"][1])], module.out_proj, out_path, attention.out_proj, "bias")


_NOTE = "torch's quantized forward is wrong with batch_first and several heads"

RULES: dict[type[nn.Module], Rule] = {
    nnq.MultiheadAttention: Rule(build_attention, "nn.MultiheadAttention", _NOTE),
    nnqa.MultiheadAttention: Rule(build_attention, "nn.MultiheadAttention", "with float or quantized Linears inside"),
}
