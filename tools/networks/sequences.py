"""Small networks for sequences of words, which torch quantizes dynamically."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["GRU", "LSTM", "Bert"]

WORDS = 20


class LSTM(nn.Module):
    """Two bidirectional layers; the class is read from the last step."""

    recurrent: type[nn.RNNBase] = nn.LSTM

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 12)
        self.rnn = self.recurrent(12, 16, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 10) words to (n, 4)."""
        return self.head(self.rnn(self.embedding(x))[0][:, -1])


class GRU(LSTM):
    """The same with gated recurrent units."""

    recurrent = nn.GRU


class _Attention(nn.Module):
    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(size, size), nn.Linear(size, size), nn.Linear(size, size)
        self.heads, self.dense, self.norm = heads, nn.Linear(size, size), nn.LayerNorm(size, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.norm(x + self.dense((weights @ v).transpose(1, 2).flatten(2)))


class _Block(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.attention = _Attention(size, 2)
        self.intermediate, self.output = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)
        self.gelu, self.norm = nn.GELU(), nn.LayerNorm(size, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x)
        return self.norm(x + self.output(self.gelu(self.intermediate(x))))


class Bert(nn.Module):
    """Embeddings of words and places, two blocks, a pooler and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, 16), nn.Embedding(10, 16)
        self.norm = nn.LayerNorm(16, eps=1e-12)
        self.encoder = nn.Sequential(_Block(16), _Block(16))
        self.pooler, self.tanh, self.classifier = nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 10) words to (n, 4)."""
        x = self.encoder(self.norm(self.words(x) + self.places(torch.arange(x.shape[1], device=x.device))))
        return self.classifier(self.tanh(self.pooler(x.mean(1))))
