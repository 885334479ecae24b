from __future__ import annotations

import gc

import pytest
import torch
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq
from torch import nn

import qdeq
from qdeq import QdeqError, dequantize_model
from tests.helpers.models import assert_same_bits
from tests.sources.eager.classes.helpers import ON_ENGINES, rebuilt_and_report

BITS = pytest.mark.parametrize("dtype", [torch.quint8, torch.quint4x2], ids=["8 bits", "4 bits"])


def quantized_table(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    table = torch.randn(rows, columns)
    levels = 255 if dtype == torch.quint8 else 15
    low, high = table.min(1).values, table.max(1).values
    scales = (high - low) / levels
    return torch.quantize_per_channel(table, scales, -low / scales, 0, dtype)


@ON_ENGINES
@BITS
@pytest.mark.parametrize("kind", [nnq.Embedding, nnq.EmbeddingBag])
def test_weight(kind, dtype, backend):
    torch.manual_seed(51)
    del backend  # embeddings are packed the same way whatever the engine is
    weight = quantized_table(13, 24, dtype)
    module = kind(13, 24, dtype=dtype, _weight=weight)
    rebuilt, report = rebuilt_and_report(module)
    assert type(rebuilt) is (nn.Embedding if kind is nnq.Embedding else nn.EmbeddingBag)
    assert_same_bits(rebuilt.weight, weight.dequantize())
    assert_same_bits(rebuilt.weight, module.weight().dequantize())
    assert report.entries[0].qscheme == "per_channel_affine_float_qparams"
    assert report.entries[0].dtype == ("quint8" if dtype == torch.quint8 else "quint4x2")


@BITS
def test_lookup_and_bags_compute_the_same(dtype):
    torch.manual_seed(52)
    weight = quantized_table(13, 24, dtype)
    indices, offsets = torch.tensor([9, 6, 5, 7, 8, 8, 9, 2]), torch.tensor([0, 3, 3, 8])
    # torch computes 4-bit rows with float16 copies of their scales; weight() gives the float32 ones.
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.quint8 else {"rtol": 2**-8, "atol": 2**-6}
    lookup = nnq.Embedding(13, 24, dtype=dtype, _weight=weight)
    torch.testing.assert_close(rebuilt_and_report(lookup)[0](indices), lookup(indices), **close)
    for last in (True, False):
        bag = nnq.EmbeddingBag(13, 24, dtype=dtype, _weight=weight, include_last_offset=last)
        rebuilt, _ = rebuilt_and_report(bag)
        assert rebuilt.include_last_offset is last
        starts = offsets if last else offsets[:-1]
        per_sample = torch.rand(8)
        torch.testing.assert_close(rebuilt(indices, starts), bag(indices, starts), **close)
        torch.testing.assert_close(
            rebuilt(indices, starts, per_sample_weights=per_sample), bag(indices, starts, per_sample), **close
        )


def test_a_mean_bag_means_what_its_float_form_meant():
    bag = nnq.EmbeddingBag(5, 8, mode="mean")
    rebuilt, report = rebuilt_and_report(bag)
    assert rebuilt.mode == "mean"
    assert "sums in every mode" in report.notes["0"][0]


def test_four_bits_as_eager_convert_leaves_them():
    """convert() leaves dtype quint8 on a 4-bit Embedding; the packed weight knows better."""
    torch.manual_seed(53)
    model = nn.Sequential(nn.Embedding(10, 16))
    model[0].qconfig = tq.float_qparams_weight_only_qconfig_4bit
    tq.prepare(model, inplace=True)
    tq.convert(model, inplace=True)
    assert type(model[0]) is nnq.Embedding
    rebuilt = dequantize_model(model)
    assert_same_bits(rebuilt[0].weight, model[0].weight().dequantize())
    assert rebuilt(torch.tensor([1, 2])).shape == (2, 16)


def test_the_result_outlives_the_module():
    """torch's own unpacked scales point into the packed weight and are garbage once it is gone."""
    torch.manual_seed(54)
    model = nn.Sequential(nnq.Embedding(64, 32, _weight=quantized_table(64, 32, torch.quint8)))
    expected = model[0].weight().dequantize()
    rebuilt, report = dequantize_model(model, return_report=True)
    del model
    gc.collect()
    junk = [torch.full((64,), 7.0) for _ in range(50)]
    assert_same_bits(rebuilt[0].weight, expected)
    assert 0 < report.entries[0].scale_max < 1
    del junk


@pytest.mark.parametrize("kind", [nnq.Embedding, nnq.EmbeddingBag])
def test_two_bits_are_no_module_of_torchs(kind):
    """When torch packs a 2-bit table, BITS gets it. Until then its tensors are read, through a class of one's own."""
    table = quantized_table(13, 24, torch.quint2x4)
    with pytest.raises((NotImplementedError, RuntimeError), match=r"quint2x4|Unsupported dtype"):
        kind(13, 24, dtype=torch.quint2x4, _weight=table)
    assert_same_bits(qdeq.dequantize(table), table.dequantize())


def test_max_norm_is_gone_before_qdeq_sees_the_module():
    """convert() drops it, and renormalizing would change a weight that is exact now."""
    torch.manual_seed(55)
    options = {"mode": "sum", "include_last_offset": True, "max_norm": 0.5, "padding_idx": 2}
    model = nn.ModuleDict({"bag": nn.EmbeddingBag(10, 16, **options)})
    model["bag"].qconfig = tq.float_qparams_weight_only_qconfig
    tq.prepare(model, inplace=True)
    tq.convert(model, inplace=True)
    assert type(model["bag"]) is nnq.EmbeddingBag
    assert not hasattr(model["bag"], "max_norm")
    rebuilt = dequantize_model(model)["bag"]
    assert (rebuilt.max_norm, rebuilt.padding_idx, rebuilt.include_last_offset) == (None, None, True)
    assert_same_bits(rebuilt.weight, model["bag"].weight().dequantize())


def test_pruned_rows_are_refused():
    bag = nnq.EmbeddingBag(5, 8)
    bag.pruned_weights = True
    with pytest.raises(QdeqError, match=r"^0: .*pruned"):
        rebuilt_and_report(bag)
