"""Float models of the tests: module level, so that whole models can be pickled.

No postponed annotations: torch.fx writes them into the code it generates.
"""

import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.nn import functional as F


class TinyVGG(nn.Module):
    """Two convolutions and two linears, with batch norms on request."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1)]
        layers += [nn.BatchNorm2d(8)] if norm else []
        layers += [nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, bias=False)]
        layers += [nn.BatchNorm2d(16)] if norm else []
        self.features = nn.Sequential(*layers, nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(self.quant(x)).mean((2, 3))
        return self.dequant(self.classifier(x))


class Recurrent(nn.Module):
    """Every dynamic RNN."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, 2, bidirectional=True)
        self.gru = nn.GRU(16, 6)
        self.cell, self.gru_cell = nn.LSTMCell(6, 4), nn.GRUCell(4, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gru(self.lstm(x)[0])[0]
        h, _ = self.cell(x[-1])
        return self.fc(self.gru_cell(h))


class Tables(nn.Module):
    """Embeddings of 8 and 4 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.EmbeddingBag(20, 16, mode="sum", include_last_offset=True)
        self.b = nn.EmbeddingBag(20, 16, mode="sum", include_last_offset=True)
        self.c = nn.Embedding(10, 8)

    def forward(self, i: Tensor, o: Tensor) -> Tensor:
        return self.a(i, o) + self.b(i, o)


class Functional(nn.Module):
    """Weights that are parameters of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6))
        self.cw = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.cw, None, (1, 1), (1, 1), (1, 1), 1).mean((2, 3))
        return self.last(F.linear(x, self.w, self.b))
