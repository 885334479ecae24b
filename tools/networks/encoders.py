"""Networks over sequences of tokens: a small transformer encoder, and one whose states an LSTM carries."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["make_encoder", "make_recurrent"]

WORDS, WIDTH, HEADS = 40, 32, 4


class Block(nn.Module):
    """Attention and two linear layers, each with what came before added and a layer norm behind."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) to the same."""
        batch, length, _ = x.shape
        query, key, value = (
            layer(x).reshape(batch, length, HEADS, WIDTH // HEADS).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        shares = (query @ key.transpose(2, 3) / (WIDTH // HEADS) ** 0.5).softmax(-1)
        mixed = (shares @ value).transpose(1, 2).reshape(batch, length, WIDTH)
        x = self.norm1(x + self.out(mixed))
        return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))


class Encoder(nn.Module):
    """An embedding, two blocks and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, length) of words to (batch, length, 10)."""
        return self.head(self.blocks(self.words(tokens)))


class Recurrent(nn.Module):
    """An embedding, a block, an LSTM and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.block = nn.Embedding(WORDS, WIDTH), Block()
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * WIDTH, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, length) of words to (batch, length, 10)."""
        return self.head(self.lstm(self.block(self.words(tokens)))[0])


def make_encoder() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The encoder with random weights, and tokens for it."""
    return Encoder().eval(), (torch.randint(0, WORDS, (1, 12)),)


def make_recurrent() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network with an LSTM with random weights, and tokens for it."""
    return Recurrent().eval(), (torch.randint(0, WORDS, (1, 12)),)
