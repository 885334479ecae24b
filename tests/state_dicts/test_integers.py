"""Plain integers: with their scales they are weights, without they are none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qdeq

FLOAT = torch.linspace(-1, 1, 32).reshape(4, 8)
CHANNELS = torch.quantize_per_channel(FLOAT, torch.linspace(0.01, 0.02, 4), torch.arange(4), 0, torch.qint8)
COLUMNS = torch.quantize_per_channel(FLOAT, torch.linspace(0.01, 0.02, 8), torch.arange(8), 1, torch.qint8)
TENSOR = torch.quantize_per_tensor(FLOAT, 0.013, 128, torch.quint8)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4, bias=False))


def parts(q, *, columns=False, zeros=True):
    per_tensor = q.qscheme() == torch.per_tensor_affine
    scale = torch.tensor(q.q_scale()) if per_tensor else q.q_per_channel_scales()
    zero = torch.tensor(q.q_zero_point()) if per_tensor else q.q_per_channel_zero_points()
    found = {"0.weight": q.int_repr(), "0.weight_scale": scale[:, None] if columns else scale}
    return {**found, "0.weight_zero_point": zero} if zeros else found


FORMS = {
    "one scale for each channel": (parts(CHANNELS), CHANNELS),
    "scales of (channels, 1)": ({**parts(CHANNELS, columns=True)}, CHANNELS),
    "channels of the second dimension": (parts(COLUMNS), COLUMNS),
    "with an axis": ({**parts(COLUMNS), "0.weight_axis": torch.tensor(1)}, COLUMNS),
    "one scale": (parts(TENSOR), TENSOR),
    "numbers": (
        {"0.weight": TENSOR.int_repr(), "0.weight_scale": TENSOR.q_scale(), "0.weight_zero_point": 128},
        TENSOR,
    ),
}


@pytest.mark.parametrize("name", list(FORMS))
@pytest.mark.parametrize("source", ["dict", "archive", "nested"])
def test_integers_with_scales_are_dequantized(name, source, tmp_path):
    state, q = FORMS[name]
    sd = {"model": state} if source == "nested" else state
    if source == "archive":
        torch.save(state, tmp_path / "a.pth")
        sd = qdeq.open(tmp_path / "a.pth")
        assert sd.entry("0.weight").qscheme is not None
    target = net()
    _, report = qdeq.dequantize_state_dict(sd, into=target)
    assert torch.equal(target[0].weight, q.dequantize())
    assert report.entries[0].qscheme is not None
    assert {item.reason for item in report.dropped} == {"used for " + report.entries[0].source}


def test_scales_without_zero_points():
    symmetric = torch.quantize_per_channel(FLOAT, torch.linspace(0.01, 0.02, 4), torch.zeros(4), 0, torch.qint8)
    found, _ = qdeq.dequantize_state_dict(parts(symmetric, zeros=False))
    assert torch.equal(found["0.weight"], symmetric.dequantize())


@pytest.mark.parametrize("q", [CHANNELS, TENSOR], ids=["channels", "tensor"])
def test_what_convert_keeps_is_read_by_any_reader(q, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not there")
    qdeq.save_safetensors({"0.weight": q}, tmp_path / "a.safetensors", keep="int8")
    target = net()
    qdeq.dequantize_state_dict(safetensors.load_file(tmp_path / "a.safetensors"), into=target)
    assert torch.equal(target[0].weight, q.dequantize())
    safetensors.save_file(parts(q), tmp_path / "b.safetensors")  # without qdeq's metadata
    with qdeq.open(tmp_path / "b.safetensors") as weights:
        assert list(weights) == ["0.weight"]
        assert weights.entry("0.weight").qscheme == str(q.qscheme()).removeprefix("torch.")
        assert torch.equal(weights["0.weight"].dequantize(), q.dequantize())


ALONE = {
    "alone": {"0.weight": CHANNELS.int_repr()},
    "an output's": {"0.weight": CHANNELS.int_repr(), "0.scale": torch.tensor(0.1), "0.zero_point": torch.tensor(0)},
    "int64": {"0.weight": CHANNELS.int_repr().long()},
    "bool": {"0.weight": CHANNELS.int_repr() > 0},
    "scales of another size": {"0.weight": CHANNELS.int_repr(), "0.weight_scale": torch.ones(5)},
}  # fmt: skip


@pytest.mark.parametrize("name", list(ALONE))
@pytest.mark.parametrize("strict", [True, False])
def test_integers_alone_are_refused_where_floats_are_wanted(name, strict):
    target = net()
    before = target[0].weight.clone()
    with pytest.raises(qdeq.QdeqValueError, match=r"into: 0.weight: .* from 0.weight"):
        qdeq.dequantize_state_dict(ALONE[name], into=target, strict=strict)
    assert torch.equal(target[0].weight, before)


def test_floats_are_no_integers_either():
    target = net()
    target.register_buffer("index", torch.zeros(3, dtype=torch.int64))
    with pytest.raises(qdeq.QdeqValueError, match=r"into: index: expected integer values"):
        qdeq.dequantize_state_dict({"0.weight": CHANNELS, "index": torch.tensor([0.5, 1, 2])}, into=target)
    qdeq.dequantize_state_dict({"0.weight": CHANNELS, "index": torch.tensor([1, 2, 3])}, into=target)
    assert target.index.tolist() == [1, 2, 3]


def test_integers_alone_are_refused_or_noted_without_a_model(tmp_path):
    state = {"0.weight": CHANNELS.int_repr(), "0.index": torch.arange(3), "0.bias": torch.zeros(4)}
    with pytest.raises(qdeq.QdeqValueError, match=r"0.weight: expected a floating point or quantized weight.*int8"):
        qdeq.dequantize_state_dict(state)
    found, report = qdeq.dequantize_state_dict(state, strict=False)
    assert found["0.weight"].dtype == torch.int8
    assert "passed on as integers" in report.notes["0.weight"][0]
    torch.save(state, tmp_path / "a.pth")
    with qdeq.open(tmp_path / "a.pth") as weights:
        assert any("0.weight: plain int8" in text for text in weights.warnings)


def test_a_bad_axis_or_zero_point_is_named():
    with pytest.raises(qdeq.QdeqValueError, match="an axis among"):
        qdeq.dequantize_state_dict({**parts(CHANNELS), "0.weight_axis": torch.tensor(1)})
    with pytest.raises(qdeq.QdeqValueError, match="whole numbers as zero point"):
        qdeq.dequantize_state_dict({**parts(TENSOR), "0.weight_zero_point": torch.tensor(0.5)})


def test_a_reference_modules_float_weight_stays():
    state = {"0.weight": FLOAT, "0.weight_scale": torch.tensor(0.1), "0.weight_zero_point": torch.tensor(0)}
    found, report = qdeq.dequantize_state_dict(state)
    assert torch.equal(found["0.weight"], FLOAT)
    assert len(report.dropped) == 2
