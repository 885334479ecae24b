"""A forward whose annotations are text, as ``from __future__ import annotations`` leaves them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import qdeq
from tools.models import engine, tq


class Annotated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


@pytest.mark.filterwarnings("ignore:The TorchScript type system")  # torch says it of its own generated code
def test_the_rebuilt_graph_can_be_scripted():
    x = torch.randn(4, 3)
    with engine("fbgemm"):
        prepared = prepare_fx(Annotated().eval(), tq.get_default_qconfig_mapping("fbgemm"), (x,))
        prepared(x)
        rebuilt = qdeq.dequantize_model(convert_fx(prepared))
    assert torch.equal(torch.jit.script(rebuilt)(x), rebuilt(x))
