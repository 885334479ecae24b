"""Whole models as ``torch.load`` gives them back: their convolutions lack what ``nn.Module.__init__`` sets up."""

from __future__ import annotations

import io

import pytest
import torch
import torch.ao.quantization as tq
from torch import Tensor, nn

import qdeq
from tools.models import engine


class Net(nn.Module):
    """A fused convolution, one nested deeper, and a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        inner = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), inner)
        self.up, self.fc = nn.ConvTranspose2d(8, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.fc(self.up(self.body(self.quant(x))).mean((2, 3))))


@pytest.fixture(scope="module")
def models() -> tuple[nn.Module, nn.Module, nn.Module, Tensor]:
    """(float, int8, int8 after torch.save and torch.load, data)."""
    torch.manual_seed(0)
    with engine("fbgemm"):
        net, data = Net().eval(), torch.randn(4, 3, 8, 8)
        fused = tq.fuse_modules(net, [["body.0", "body.1", "body.2"], ["body.3.0", "body.3.1"]])
        fused.qconfig = tq.default_qconfig
        prepared = tq.prepare(fused)
        prepared(data)
        int8 = tq.convert(prepared)
        file = io.BytesIO()
        torch.save(int8, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
    assert "_modules" not in vars(loaded.body[0])  # torch's fault; without it these tests say nothing
    return net, int8, loaded, data


pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")


def test_a_loaded_model_is_rebuilt_like_the_one_that_was_saved(models) -> None:
    _, int8, loaded, data = models
    wanted, found = qdeq.dequantize_model(int8), qdeq.dequantize_model(loaded)
    assert list(found.state_dict()) == list(wanted.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(found.state_dict().values(), wanted.state_dict().values(), strict=True)
    )
    assert torch.equal(found(data), wanted(data))
    alone = qdeq.dequantize_model(loaded.up)
    assert torch.equal(alone.weight, wanted.up.weight)


@pytest.mark.parametrize("with_data", [True, False])
def test_a_loaded_model_is_explained_and_stays_as_it_was(models, with_data: bool) -> None:
    net, int8, loaded, data = models
    before = set(vars(loaded.body[0]))
    result = qdeq.explain(loaded, net, data if with_data else None)
    assert result.verdict == qdeq.explain(int8, net, data if with_data else None).verdict
    assert set(vars(loaded.body[0])) == before


def test_a_loaded_model_is_compared(models) -> None:
    _, int8, loaded, data = models
    result = qdeq.compare(loaded, int8, data)
    assert [row.module for row in result.layers] == [row.module for row in qdeq.compare(int8, int8, data).layers]
    assert result.outcome.max_abs == 0


def test_one_that_cannot_be_copied_is_refused_with_a_way_out(models) -> None:
    _, _, loaded, _ = models
    holder = nn.Sequential(loaded)
    holder.lines = (line for line in "ab")  # a generator cannot be copied
    with pytest.raises(qdeq.QdeqValueError, match=r"Sequential: expected float parts .*qdeq\.open\(path\)"):
        qdeq.explain(holder, nn.Sequential(models[0]))
