"""Weights of 1 to 8 bits: NVFP4, MXFP4, packed and byte integers, as their publishers write them."""

from __future__ import annotations

import json

import pytest
import torch

import qdeq
from tests.files.released.folders import (
    E8M0,
    FLOAT4,
    FP8_BLOCK,
    block_scales,
    codes,
    expanded,
    integers_of,
    nibbles,
    pack_words,
    same,
    scales,
    write_folder,
)
from tests.files.released.test_converting import loaded
from tests.files.released.test_reading import folder

M = "m.fc."


def group(form, **weights):
    return {"format": form, "targets": ["Linear"], "weights": weights}


def ct(*groups):
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {f"group_{i}": part for i, part in enumerate(groups)},
    }


def ints(bits, strategy, size=None, form="pack-quantized"):
    return group(form, num_bits=bits, type="int", strategy=strategy, group_size=size)


NVFP4 = ct(group("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16))
MXFP4 = ct(group("mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32))
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
SHAPE = (20, 96)
CODES, BYTES = nibbles(SHAPE)
FP8_SCALE = (scales((20, 6)) * 2000).to(torch.float8_e4m3fn)
EXPONENTS = torch.randint(100, 140, (20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def assert_opens_as(path, wanted, name=M + "weight"):
    with qdeq.open(path) as opened:
        assert list(opened) == [name]
        assert opened.entry(name).shape == tuple(wanted.shape)
        assert same(opened[name].dequantize(), wanted)
    qdeq.dequantize_checkpoint(path, path.parent / "dst")
    assert same(loaded(path.parent / "dst")[name], wanted.bfloat16())
    assert "quantization_config" not in json.loads((path.parent / "dst/config.json").read_text())


def test_nvfp4_of_compressed_tensors_divides(tmp_path):
    tensors = {M + "weight_packed": BYTES, M + "weight_scale": FP8_SCALE}
    tensors |= {M + "weight_global_scale": torch.tensor([3584.0]), M + "input_global_scale": torch.tensor([7.0])}
    scale = FP8_SCALE.float() / 3584.0
    assert_opens_as(folder(tmp_path, tensors, NVFP4), FLOAT4[CODES.int()] * expanded(scale, SHAPE, (1, 16)))


def test_nvfp4_of_modelopt_multiplies(tmp_path):
    second = torch.tensor(1 / 3584)
    tensors = {M + "weight": BYTES, M + "weight_scale": FP8_SCALE, M + "weight_scale_2": second}
    wanted = FLOAT4[CODES.int()] * expanded(FP8_SCALE.float() * second, SHAPE, (1, 16))
    assert_opens_as(folder(tmp_path, {**tensors, M + "input_scale": second.clone()}, MODELOPT), wanted)


@pytest.mark.parametrize("second", [3584.0, 0.3], ids=str)
def test_the_two_ways_are_not_one(tmp_path, second):
    got = []
    for key, last, quantization in (
        ("weight_packed", "weight_global_scale", NVFP4),
        ("weight", "weight_scale_2", MODELOPT),
    ):
        tensors = {M + key: BYTES, M + "weight_scale": FP8_SCALE, M + last: torch.tensor([second])}
        with qdeq.open(write_folder(tmp_path / key, {"model.safetensors": tensors}, quantization)) as opened:
            got.append(opened[M + "weight"].dequantize())
    assert not torch.equal(*got)


@pytest.mark.parametrize("way", ["compressed-tensors", "experts"])
def test_mxfp4(tmp_path, way):
    wanted = FLOAT4[CODES.int()] * expanded(EXPONENTS.view(E8M0).float(), SHAPE, (1, 32))
    if way == "experts":
        tensors = {M + "weight": BYTES.view(torch.int8), M + "scale": EXPONENTS.view(E8M0)}
        tensors |= {"b.weight": codes((130, 130)), "b.scale": block_scales((130, 130))}
        path = folder(tmp_path, tensors, {**FP8_BLOCK, "expert_dtype": "fp4"})
        with qdeq.open(path) as opened:
            assert same(opened[M + "weight"].dequantize(), wanted)
            assert opened["b.weight"].values == "float8_e4m3fn"
    else:
        assert_opens_as(folder(tmp_path, {M + "weight_packed": BYTES, M + "weight_scale": EXPONENTS}, MXFP4), wanted)


def test_words_written_down_by_hand(tmp_path):
    """4 bits: 7 in column 3 and -8 elsewhere is 0x0000f000; 3 bits: 3 in column 10 lies across two words."""
    assert pack_words(torch.tensor([[-8, -8, -8, 7, -8, -8, -8, -8]]), 4).tolist() == [[0xF000]]
    row = torch.full((1, 32), -4)
    row[0, 10] = 3
    assert [word & 0xFFFFFFFF for word in pack_words(row, 3)[0].tolist()] == [0xC0000000, 1, 0]
    tensors = {M + "weight_packed": pack_words(row, 3), M + "weight_scale": torch.ones(1, 1)}
    tensors[M + "weight_shape"] = torch.tensor([1, 32])
    assert_opens_as(folder(tmp_path, tensors, ct(ints(3, "channel"))), row.float())


@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_packed_integers_of_every_width(tmp_path, bits, zeros):
    shape, size = (21, 96), 32
    integers, scale = integers_of(shape, bits, bits), scales((21, 3)).bfloat16()
    tensors = {
        M + "weight_packed": pack_words(integers, bits),
        M + "weight_scale": scale,
        M + "weight_shape": torch.tensor(shape),
    }
    zero = torch.zeros(21, 3)
    if zeros:
        stored = integers_of((21, 3), bits, 99)
        tensors[M + "weight_zero_point"] = pack_words(stored.t().contiguous(), bits).t().contiguous()
        zero = stored.float()
    wanted = (integers.float() - expanded(zero, shape, (1, size))) * expanded(scale, shape, (1, size))
    assert_opens_as(folder(tmp_path, tensors, ct(ints(bits, "group", size))), wanted)


@pytest.mark.parametrize(("strategy", "grid"), [("tensor", (1,)), ("channel", (20, 1))])
@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "zero points"])
def test_integers_in_bytes(tmp_path, strategy, grid, zeros):
    integers, scale = integers_of(SHAPE, 8).to(torch.int8), scales(grid).half()
    tensors = {M + "weight": integers, M + "weight_scale": scale}
    zero = torch.zeros(grid, dtype=torch.int8)
    if zeros:
        zero = tensors[M + "weight_zero_point"] = integers_of(grid, 8, 5).to(torch.int8)
    path = folder(tmp_path, tensors, ct(ints(8, strategy, form="int-quantized")))
    assert_opens_as(path, (integers.float() - zero.float()) * scale.float())


def test_groups_of_several_kinds(tmp_path):
    """Each weight is matched by its width and its scales; a config that two groups could mean is refused."""
    small, large = integers_of((4, 64), 4), integers_of((4, 64), 8)
    tensors = {
        "a.weight_packed": pack_words(small, 4),
        "a.weight_scale": scales((4, 2)),
        "a.weight_shape": torch.tensor([4, 64]),
        "b.weight_packed": pack_words(large, 8),
        "b.weight_scale": scales((4, 1)),
        "b.weight_shape": torch.tensor([4, 64]),
    }
    path = folder(tmp_path, tensors, ct(ints(4, "group", 32), ints(8, "channel")))
    with qdeq.open(path) as opened:
        assert same(opened["a.weight"].dequantize(), small.float() * expanded(scales((4, 2)), (4, 64), (1, 32)))
        assert same(opened["b.weight"].dequantize(), large.float() * scales((4, 1)))


PACKED = {M + "weight_packed": pack_words(integers_of((4, 32), 4), 4), M + "weight_scale": scales((4, 1)),
          M + "weight_shape": torch.tensor([4, 32])}  # fmt: skip
CHANNEL = ct(ints(4, "channel"))
ACT_ORDER = group("pack-quantized", num_bits=4, type="int", strategy="group", group_size=16, actorder="group")
OPT = {M + "weight": BYTES, M + "weight_scale": FP8_SCALE, M + "weight_scale_2": scales(())}


@pytest.mark.parametrize(
    ("tensors", "quantization", "message"),
    [
        ({**PACKED, M + "weight_shape": torch.tensor([4, 33])}, CHANNEL, "rows of 33 values of 4 bits"),
        ({**PACKED, M + "weight_shape": torch.tensor([5, 32])}, CHANNEL, "weight_shape'?: expected two sizes"),
        ({**PACKED, M + "weight_shape": torch.tensor([4, -1])}, CHANNEL, "weight_shape'?: expected two sizes"),
        ({**PACKED, M + "weight_shape": torch.tensor([4.0, 32.0])}, CHANNEL, "weight_shape'?: expected two sizes"),
        ({k: v for k, v in PACKED.items() if "shape" not in k}, CHANNEL, "weight_shape' beside it, got none"),
        (PACKED, ct(ints(3, "channel")), "rows of 32 values of 3 bits .* before 0.17"),
        (PACKED, ct(ints(4, "group", 16)), "one for 1 x 16 values, as"),
        (PACKED, MXFP4, "weights as .* says, MXFP4, got packed integers"),
        ({**PACKED, M + "weight_g_idx": torch.arange(32)}, CHANNEL, "columns in the order of their groups"),
        ({**PACKED, M + "weight_zero_point": torch.zeros(2, 1, dtype=torch.int32)}, CHANNEL, "int32 of shape 1x1"),
        (PACKED, ct(ints(9, "channel")), "9 bits"),
        (PACKED, ct(ACT_ORDER), "actorder"),
        ({M + "weight_packed": BYTES, M + "weight_scale": FP8_SCALE}, NVFP4, "weights as .* got MXFP4"),
        ({k: v for k, v in OPT.items() if k != M + "weight_scale"}, MODELOPT, "weight_scale' beside it"),
        ({**OPT, M + "weight_scale": EXPONENTS.flatten()}, MODELOPT, "a grid of float8_e4m3fn, got uint8 of shape 60"),
        ({**OPT, M + "weight_scale_2": scales((2,))}, MODELOPT, "one float32, got float32 of shape 2"),
        ({**OPT, M + "pre_quant_scale": scales((96,))}, MODELOPT, "without pre_quant_scale"),
        ({**PACKED, M + "weight": torch.ones(4, 32)}, CHANNEL, "one weight of this name, got two"),
    ],
)  # fmt: skip
def test_contradictions(tmp_path, tensors, quantization, message):
    path = folder(tmp_path, tensors, quantization)
    with pytest.raises(qdeq.QdeqValueError, match=message):
        qdeq.open(path)


def test_a_zero_as_second_divisor_is_found(tmp_path):
    tensors = {M + "weight_packed": BYTES, M + "weight_scale": FP8_SCALE, M + "weight_global_scale": torch.zeros(1)}
    path = folder(tmp_path, tensors, NVFP4)
    with pytest.raises(qdeq.QdeqValueError, match=r"m\.fc\.weight: expected finite scales"):
        qdeq.dequantize_checkpoint(path, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()
