"""Released checkpoints opened: every way FP8 weights are stored, and everything that contradicts itself."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

import qdeq
from tests.files.released.folders import (
    E4M3,
    E8M0,
    FP8_BLOCK,
    block_fp8,
    block_scales,
    codes,
    dense,
    expanded,
    same,
    scales,
    write_folder,
)

W, S = "m.fc.weight", "m.fc.weight_scale"


def ct(strategy, **weights):
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": strategy, **weights}}
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group}}


def folder(tmp_path, tensors, quantization):
    return write_folder(tmp_path / "model", {"model.safetensors": tensors}, quantization)


def test_a_folder_of_shards(tmp_path):
    path, tensors = block_fp8(tmp_path / "model")
    with qdeq.open(path) as opened:
        wanted = dense(tensors)
        assert set(opened) == set(wanted)
        for name, value in wanted.items():
            got = opened[name]
            assert same(got if isinstance(got, torch.Tensor) else got.dequantize(), value), name
            assert opened.entry(name).shape == tuple(value.shape)
        assert opened.dropped["model.layers.0.attn.k_scale"] == "scale of activations"
        assert {path.name for path in opened.files} == {p.name for p in path.iterdir()} - {"config.json"}
        assert opened.entry("model.layers.0.mlp.up_proj.weight").qscheme == "per_block"
        assert len(opened.report.entries) == len(wanted)


def test_into_a_model(tmp_path):
    shape = (130, 200)
    path = folder(tmp_path, {"weight": codes(shape), "weight_scale_inv": block_scales(shape)}, FP8_BLOCK)
    model = torch.nn.Linear(200, 130, bias=False)
    _, report = qdeq.dequantize_state_dict(qdeq.open(path), into=model)
    assert same(model.weight.detach(), codes(shape).float() * expanded(block_scales(shape), shape, (128, 128)))
    assert report.entries[0].dtype == "float8_e4m3fn"


@pytest.mark.parametrize("shape", [(192, 256), (200, 300), (576, 256), (1000, 128), (128, 448)], ids=str)
def test_the_size_of_blocks_is_that_of_the_config(tmp_path, shape):
    scale = block_scales(shape)
    path = folder(tmp_path, {W: codes(shape), W + "_scale_inv": scale}, FP8_BLOCK)
    with qdeq.open(path) as opened:
        assert same(opened[W].dequantize(), codes(shape).float() * expanded(scale, shape, (128, 128)))


SHAPE = (48, 40)
EXPONENTS = torch.randint(100, 140, (48, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
POWERS = EXPONENTS.view(E8M0).float()


@pytest.mark.parametrize(
    ("key", "scale", "quantization", "block", "stored"),
    [
        ("weight_scale", scales(()), {"quant_method": "fp8"}, (48, 40), None),
        ("weight_scale", scales((1,)), {"quant_method": "modelopt", "quant_algo": "FP8"}, (48, 40), None),
        ("weight_scale", scales((48, 1)), {"quant_method": "fbgemm_fp8"}, (1, 40), None),
        ("weight_scale", scales((48,)), None, (1, 40), None),
        ("weight_scale", scales((48, 1)).bfloat16(), ct("channel"), (1, 40), None),
        ("weight_scale", scales((1,)), ct("tensor"), (48, 40), None),
        ("weight_scale", scales((3, 2)), ct("block", block_structure=[16, 32]), (16, 32), None),
        ("weight_scale", scales((48, 2)), ct("group", group_size=32), (1, 32), None),
        ("weight_scale", POWERS, ct("group", group_size=32, scale_dtype="torch.uint8"), (1, 32), EXPONENTS),
        ("weight_scale_inv", scales((3, 2)), {**FP8_BLOCK, "weight_block_size": [16, 32]}, (16, 32), None),
        ("weight_scale_inv", scales(()), {"quant_method": "fp8", "weight_block_size": None}, (48, 40), None),
        ("weight_scale_inv", POWERS, {**FP8_BLOCK, "weight_block_size": [1, 20]}, (1, 20), EXPONENTS.view(E8M0)),
        ("scale", POWERS, {**FP8_BLOCK, "weight_block_size": [1, 20], "scale_fmt": "ue8m0"}, (1, 20), EXPONENTS),
        ("qscale_weight", scales(()), {"quant_method": "fp8"}, (48, 40), None),
    ],
)
def test_every_place_of_scales(tmp_path, key, scale, quantization, block, stored):
    tensors = {W: codes(SHAPE), f"m.fc.{key}": scale if stored is None else stored, "m.fc.input_scale": torch.ones(())}
    with qdeq.open(folder(tmp_path, tensors, quantization)) as opened:
        assert list(opened) == [W]
        grid = scale.reshape(-(-48 // block[0]), -(-40 // block[1]))
        assert same(opened[W].dequantize(), codes(SHAPE).float() * expanded(grid, SHAPE, block))
        assert opened.dropped["m.fc.input_scale"] == "scale of activations"


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.float8_e4m3fnuz])
def test_other_codes_have_their_own_values(tmp_path, dtype):
    with qdeq.open(folder(tmp_path, {W: codes(SHAPE, dtype=dtype), S: scales(())}, None)) as opened:
        assert same(opened[W].dequantize(), codes(SHAPE, dtype=dtype).float() * scales(()))


def test_experts_with_a_scale_for_each(tmp_path):
    tensors = {"experts.up": codes((3, 4, 5)), "experts.up_scale": scales((3, 1, 1))}
    with qdeq.open(folder(tmp_path, tensors, None)) as opened:
        assert same(opened["experts.up"].dequantize(), codes((3, 4, 5)).float() * scales((3, 1, 1)))


def test_the_config_of_the_text_model_and_a_file_of_its_own(tmp_path):
    tensors = {W: codes(SHAPE), S: scales(())}
    inner = folder(tmp_path, tensors, None)
    (inner / "config.json").write_text(json.dumps({"text_config": {"quantization_config": {"quant_method": "fp8"}}}))
    with qdeq.open(inner) as opened:
        assert list(opened) == [W]
    (inner / "config.json").write_text("{}")
    text = {"producer": {"name": "x"}, "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    (inner / "hf_quant_config.json").write_text(json.dumps(text))
    with qdeq.open(inner) as opened:
        assert list(opened) == [W]


def test_a_file_alone_takes_the_config_beside_it(tmp_path):
    path = folder(tmp_path, {W: codes((130, 130)), W + "_scale_inv": block_scales((130, 130))}, FP8_BLOCK)
    with qdeq.open(path / "model.safetensors") as opened:
        assert opened[W].block == (128, 128)
    (path / "config.json").unlink()
    with pytest.raises(qdeq.QdeqValueError, match=r"m\.fc\.weight'?: expected scales.*State the size of blocks"):
        qdeq.open(path / "model.safetensors")


def test_a_dense_folder_and_plain_codes(tmp_path):
    path = folder(tmp_path, {"a": torch.ones(3), "q_norm.scale": torch.ones(2)}, None)
    assert set(qdeq.open(path)) == {"a", "q_norm.scale"}
    plain = tmp_path / "plain.safetensors"
    save_file({"a": codes((4, 4))}, plain)
    assert qdeq.open(plain)["a"].dtype == E4M3


def test_a_module_that_the_config_leaves_out_is_named(tmp_path):
    quantization = {"quant_method": "fp8", "modules_to_not_convert": ["m.fc", "lm_head"]}
    with qdeq.open(folder(tmp_path, {W: codes(SHAPE), S: scales(())}, quantization)) as opened:
        assert any("m.fc.weight: " in text and "leaves it out" in text for text in opened.warnings)


FP8 = {"quant_method": "fp8"}
PACKED = torch.zeros(2, 2, dtype=torch.int32)
GOOD = {W: codes(SHAPE), S: scales(())}


@pytest.mark.parametrize(
    ("tensors", "quantization", "message"),
    [
        ({W: codes(SHAPE)}, FP8, r"m\.fc\.weight'?: expected one tensor of scales .*, got none"),
        ({**GOOD, "b.weight": codes((2, 2))}, FP8, r"b\.weight'?: expected one tensor of scales"),
        ({**GOOD, "m.fc.scale": scales(())}, FP8, "got 'm.fc.weight_scale' and 'm.fc.scale'"),
        ({W: codes((200, 300)), W + "_scale_inv": scales((2, 2))}, FP8_BLOCK, r"one for 128 x 128 values.*2x2"),
        ({W: codes((200, 300)), W + "_scale_inv": scales((3, 3))}, FP8_BLOCK, "got .* of shape 3x3"),
        ({W: codes((200, 300)), W + "_scale_inv": scales((2, 3))}, FP8, r"2x3"),
        ({W: codes(SHAPE), S: scales((3,))}, FP8, "one for each matrix or one for each row"),
        ({W: codes(SHAPE), S: scales((48, 1))}, ct("tensor"), "one for each matrix, as"),
        ({W: codes(SHAPE), S: EXPONENTS}, ct("group", group_size=20), "says nothing of exponents"),
        ({W: codes(SHAPE), S: scales(()).double()}, FP8, "scales of .*got float64"),
        ({W: codes(SHAPE, dtype=torch.float8_e5m2), S: scales(())}, FP8_BLOCK, "codes of float8_e4m3fn, as"),
        ({W: torch.ones(4, 4), S: scales(())}, FP8, r"weights that are quantized as fp8 says"),
        ({**GOOD, "b.weight": torch.ones(4, 4), "b.weight_scale": scales(())}, FP8, "b.weight': expected codes"),
        ({**GOOD, "b.weight_scale_inv": scales(())}, FP8, r"b\.weight_scale_inv'?: expected a weight beside"),
        ({**GOOD, "b.weight": torch.ones(4, 4, dtype=torch.int8)}, FP8, r"b\.weight'?: expected a float weight"),
        ({"a": torch.ones(2)}, FP8, "weights that are quantized as fp8 says"),
        (GOOD, {"quant_method": "quip"}, "quant_method: expected one of .* got 'quip'"),
        (GOOD, {"quant_method": ["fp8"]}, "quant_method: expected one of"),
        (GOOD, {"bits": 4}, "got 'gptq'"),
        (GOOD, [1], "expected an object"),
        (GOOD, {**FP8, "weight_block_size": [128]}, "two sizes, rows and columns, got"),
        (GOOD, {**FP8, "weight_block_size": [0, 128]}, "two sizes"),
        (GOOD, {**FP8, "fmt": "int3"}, "fmt: expected one of"),
        (GOOD, {**FP8, "expert_dtype": "int4"}, "expert_dtype: expected fp8 or fp4, got 'int4'"),
        (GOOD, {**FP8, "modules_to_not_convert": "lm_head"}, "a list of names"),
        (GOOD, {**ct("tensor"), "transform_config": {"u": 1}}, "a transform_config. Its rotations"),
        (GOOD, {**ct("tensor"), "sparsity_config": {"format": "sparse-bitmask"}}, "sparsity_config: expected none"),
        (GOOD, {**ct("tensor"), "format": "marlin-24"}, "'marlin-24' with 8 bits"),
        (GOOD, ct("token"), "tensor, channel, group or block, got 'token'"),
        (GOOD, ct("group", group_size=0), "group_size: expected a size"),
        (GOOD, {**ct("tensor"), "config_groups": {}}, "config_groups: expected an object"),
        (GOOD, {"quant_method": "modelopt", "quant_algo": "W4A8"}, "quant_algo: expected one of"),
        ({"a.weight_packed": PACKED, "a.weight_scale": scales((2, 1))}, None, "a config.json beside"),
        ({"a.qweight": PACKED, "a.scales": scales((1, 2))}, None, "GPTQ or AWQ weights"),
        ({"x_blocks": torch.zeros(2, 2, dtype=torch.uint8), "x_scales": EXPONENTS}, None, "MXFP4 weights of"),
    ],
)  # fmt: skip
def test_contradictions_and_other_kinds_are_refused_by_name(tmp_path, tensors, quantization, message):
    path = folder(tmp_path, tensors, quantization)
    with pytest.raises(qdeq.QdeqValueError, match=message):
        qdeq.open(path)
    with pytest.raises(qdeq.QdeqValueError):
        qdeq.dequantize_checkpoint(path, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


def test_two_sections_that_differ(tmp_path):
    path = folder(tmp_path, GOOD, FP8)
    text = {"quantization_config": FP8, "text_config": {"quantization_config": {"quant_method": "fbgemm_fp8"}}}
    (path / "config.json").write_text(json.dumps(text))
    with pytest.raises(qdeq.QdeqValueError, match=r"the same as elsewhere"):
        qdeq.open(path)


def test_folders_without_one_model(tmp_path):
    with pytest.raises(qdeq.QdeqValueError, match=r"one index of safetensors shards.*got 0 files"):
        qdeq.open(tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"a": torch.ones(2)}, tmp_path / name)
    with pytest.raises(qdeq.QdeqValueError, match="got 'a.safetensors', 'b.safetensors'"):
        qdeq.open(tmp_path)
    (tmp_path / "a.safetensors").unlink()
    assert list(qdeq.open(tmp_path)) == ["a"]
