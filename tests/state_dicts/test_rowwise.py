"""Tables with scale and offset behind each row, as torch's own operators write them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qdeq

PACK = {8: torch.ops.quantized.embedding_bag_byte_prepack, 4: torch.ops.quantized.embedding_bag_4bit_prepack}
UNPACK = {8: torch.ops.quantized.embedding_bag_byte_unpack, 4: torch.ops.quantized.embedding_bag_4bit_unpack}


def table(rows=10, columns=16):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_are_read_as_torch_reads_them(bits):
    packed = PACK[bits](table())
    target = nn.Sequential(nn.Embedding(10, 16))
    _, report = qdeq.dequantize_state_dict({"0.weight": packed}, into=target, rowwise={"0.weight": bits})
    # Compilers may fuse product and sum in torch's loop: within one step of the largest value.
    assert torch.allclose(target[0].weight, UNPACK[bits](packed), rtol=0, atol=1e-6)
    scale, offset = packed[:, -8:].view(torch.float32).T if bits == 8 else packed[:, -4:].view(torch.float16).float().T
    values = packed[:, :-8] if bits == 8 else torch.stack([packed[:, :-4] & 15, packed[:, :-4] >> 4], -1).flatten(1)
    by_hand = values.float() * scale[:, None] + offset[:, None]
    assert torch.equal(target[0].weight, by_hand)
    assert "read row by row" in report.entries[0].note
    assert report.entries[0].shape == (10, 16)


def test_a_file_and_a_prefix(tmp_path):
    packed = PACK[8](table())
    torch.save({"model": {"emb.weight": packed}, "epoch": 3}, tmp_path / "a.pth")
    with qdeq.open(tmp_path / "a.pth") as weights:
        found, _ = qdeq.dequantize_state_dict(weights, rowwise=["model.emb.weight"], prefix="model")
        assert any("model.emb.weight: plain uint8 of shape 10x24" in text for text in weights.warnings)
    assert torch.allclose(found["emb.weight"], table(), atol=0.02)


def test_a_table_that_is_not_named_is_noticed():
    packed = PACK[8](table())
    with pytest.raises(qdeq.QdeqValueError, match="a row-wise table"):
        qdeq.dequantize_state_dict({"0.weight": packed})
    with pytest.raises(qdeq.QdeqValueError, match=r"0.weight: .*uint8 of shape \(10, 24\).*rowwise"):
        qdeq.dequantize_state_dict({"0.weight": packed}, into=nn.Sequential(nn.Embedding(10, 16)))
    bytes_ = torch.randint(0, 256, (10, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    _, report = qdeq.dequantize_state_dict({"0.weight": bytes_}, strict=False)
    assert "row-wise" not in report.notes["0.weight"][0]


@pytest.mark.parametrize(
    ("rowwise", "words"),
    [
        (["1.weight"], "the name of a table"),
        ({"0.weight": 3}, "one of \\[8, 4\\] bits"),
        ({"0.weight": [8]}, "one of \\[8, 4\\] bits"),
        ("0.weight", "names of tables"),
        (["0.weight"], "rows of uint8"),
    ],
)
def test_what_cannot_be_read_so_is_named(rowwise, words):
    state = {"0.weight": torch.zeros(3)} if rowwise == ["0.weight"] else {"0.weight": PACK[8](table())}
    with pytest.raises(qdeq.QdeqError, match=words):
        qdeq.dequantize_state_dict(state, rowwise=rowwise)


def test_bytes_that_end_in_no_scale_are_refused():
    damaged = PACK[8](table())
    damaged[3, -8:] = 255
    with pytest.raises(qdeq.QdeqValueError, match="a finite scale and offset"):
        qdeq.dequantize_state_dict({"0.weight": damaged}, rowwise=["0.weight"])
