"""A small decoder language model in plain torch, and the tokens it reads.

Owns the model's shape, its initial values, and the vocabulary. Embedding and output layer are one tensor (tied), named
once in the state dict. No dropout: a step is a function of weights and tokens alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

_PIECE = re.compile(r" ?\w+| ?[^\w\s]+|\s+")
_BYTES = 256
_DEVIATION = 0.02


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a decoder; the default has 10.1 million parameters."""

    vocabulary: int = 8192
    width: int = 320
    layers: int = 6
    heads: int = 5
    longest: int = 128


class Decoder(nn.Module):
    """Pre-norm transformer with learnt positions, GELU of four times the width, and fused query, key and value."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Embedding(shape.longest, shape.width)
        self.layers = nn.ModuleList(_Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits ``[texts, tokens, vocabulary]`` of ids ``[texts, tokens]``."""
        hidden = self.embedding(ids) + self.positions.weight[: ids.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden)
        return functional.linear(self.norm(hidden), self.embedding.weight)


class _Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attention_norm = nn.LayerNorm(shape.width)
        self.attention_input = nn.Linear(shape.width, 3 * shape.width)
        self.attention_output = nn.Linear(shape.width, shape.width)
        self.mlp_norm = nn.LayerNorm(shape.width)
        self.mlp_input = nn.Linear(shape.width, 4 * shape.width)
        self.mlp_output = nn.Linear(4 * shape.width, shape.width)

    def forward(self, hidden: Tensor) -> Tensor:
        parts = self.attention_input(self.attention_norm(hidden)).chunk(3, dim=-1)
        heads = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts]
        mixed = functional.scaled_dot_product_attention(*heads, is_causal=True)
        hidden = hidden + self.attention_output(mixed.transpose(1, 2).flatten(2))
        return hidden + self.mlp_output(functional.gelu(self.mlp_input(self.mlp_norm(hidden))))


class Pieces:
    """Text to token ids: frequent words, signs and indentations are one token each, all else is spelt in bytes."""

    def __init__(self, text: str, size: int) -> None:
        frequent = Counter(_PIECE.findall(text)).most_common(size - _BYTES)
        self._ids = {piece: _BYTES + number for number, (piece, _) in enumerate(frequent)}

    def encode(self, text: str) -> Tensor:
        """Return the ids of a text, int64."""
        ids: list[int] = []
        for piece in _PIECE.findall(text):
            known = self._ids.get(piece)
            ids += piece.encode() if known is None else (known,)
        return torch.tensor(ids)


def initial_state(shape: Shape, seed: int) -> dict[str, Tensor]:
    """Return the weights training starts from: normal matrices, zero biases, norms of one (as GPT-2 does)."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, each in _meta(shape).state_dict().items():
        if each.ndim == 2:
            narrowed = (2 * shape.layers) ** 0.5 if name.endswith("output.weight") else 1
            state[name] = torch.randn(each.shape, generator=generator) * (_DEVIATION / narrowed)
        else:
            state[name] = torch.full(each.shape, float(name.endswith("weight")))
    return state


def next_token_loss(shape: Shape, state: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    """Return the mean loss of each token of ``[texts, tokens]`` given those before it, in nats."""
    logits = functional_call(_meta(shape), dict(state), (ids[:, :-1],))
    return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


@cache
def _meta(shape: Shape) -> Decoder:
    with torch.device("meta"):
        return Decoder(shape)
