"""Released checkpoints as their publishers write them: small, of odd sizes, with every code."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu
FP8_BLOCK = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def codes(shape, seed=0, dtype=E4M3):
    """Every code about as often, NaNs included."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).view(dtype)


def scales(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1000 + seed)) * 0.02 + 1e-4


def block_scales(shape, seed=0, block=(128, 128)):
    *leading, rows, cols = shape
    return scales((*leading, -(-rows // block[0]), -(-cols // block[1])), seed)


def expanded(scale, shape, block):
    """The grid of scales, one for each value."""
    for dim, step in zip((-2, -1), block, strict=True):
        scale = scale.float().repeat_interleave(step, dim).narrow(dim, 0, shape[dim])
    return scale


def write_folder(folder: Path, shards, quantization, **config):
    """``shards``: file name -> tensors; an index where there are several; ``quantization`` None: config without it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in shards.items():
        save_file(tensors, folder / name, {"format": "pt"})
    if len(shards) > 1:
        weight_map = {key: name for name, tensors in shards.items() for key in tensors}
        text = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(text))
    section = {} if quantization is None else {"quantization_config": quantization}
    text = {"architectures": ["Some"], "torch_dtype": "bfloat16", **config, **section}
    (folder / "config.json").write_text(json.dumps(text))
    return folder


def block_fp8(folder: Path):
    """Block FP8 in three shards: cut blocks, a scale in another shard, experts in one tensor, tensors that stay."""
    shape, tall, experts = (200, 300), (576, 256), (3, 130, 129)
    first = {
        "model.embed_tokens.weight": torch.randn(7, 5, generator=torch.Generator().manual_seed(3)).bfloat16(),
        "model.layers.0.mlp.up_proj.weight": codes(shape, 1),
        "model.layers.0.mlp.up_proj.weight_scale_inv": block_scales(shape, 1),
        "model.layers.0.attn.kv_a.weight": codes(tall, 2),
        "model.layers.0.mlp.gate.e_score_correction_bias": torch.randn(9),
    }
    second = {
        "model.layers.0.attn.kv_a.weight_scale_inv": block_scales(tall, 2),
        "model.layers.0.experts.gate_up_proj": codes(experts, 3),
        "model.layers.0.experts.gate_up_proj_scale_inv": block_scales(experts, 3),
        "model.norm.weight": torch.ones(5),
        "model.layers.0.attn.k_scale": torch.tensor(0.5),
    }
    third = {"model.layers.0.mlp.down_proj.weight_scale_inv": block_scales((5, 7), 4)}
    second["model.layers.0.mlp.down_proj.weight"] = codes((5, 7), 4)
    shards = {f"model-0000{i + 1}-of-00003.safetensors": part for i, part in enumerate((first, second, third))}
    return write_folder(folder, shards, FP8_BLOCK), {**first, **second, **third}


def dense(tensors, block=(128, 128)):
    """Dense name -> float32 value of a checkpoint with ``_scale_inv``; tensors that are not quantized as they are."""
    result = {}
    for name, value in tensors.items():
        if name.endswith(("_scale_inv", "k_scale")):
            continue
        scale = tensors.get(name + "_scale_inv")
        result[name] = value if scale is None else value.float() * expanded(scale, value.shape, block)
    return result


def same(a, b):
    """Equal bits, NaN where NaN is."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    view = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[a.element_size()]
    equal = a.contiguous().view(view) == b.contiguous().view(view)
    return bool((equal | (a.isnan() & b.isnan())).all()) if a.is_floating_point() else bool(equal.all())


FLOAT4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def nibbles(shape, seed=0):
    """Codes of 4 bits, and the bytes that hold them: the first of two in the low half."""
    drawn = torch.randint(0, 16, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return drawn, drawn[..., 0::2] | drawn[..., 1::2] << 4


def pack_words(integers, bits):
    """Integers in words along the last dimension, packed: plus half the range, low bits first."""
    *leading, cols = integers.shape
    words = torch.zeros(*leading, -(-cols * bits // 32), dtype=torch.int64)
    stored = integers.long() + 2 ** (bits - 1)
    for column in range(cols):
        word, shift = divmod(column * bits, 32)
        words[..., word] |= (stored[..., column] << shift) & 0xFFFFFFFF
        if shift + bits > 32:
            words[..., word + 1] |= stored[..., column] >> (32 - shift)
    return (words & 0xFFFFFFFF).to(torch.uint32).view(torch.int32)


def integers_of(shape, bits, seed=0):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))
