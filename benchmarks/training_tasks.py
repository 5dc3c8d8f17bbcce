"""What the training runs learn: the next token from scratch, and masked tokens by fine-tuning MiniLM.

Both read the source code of Python's standard library. The batch of a step is a function of the step alone, so that
training resumed from a checkpoint sees what it would have seen without the break.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from data import EMBEDDING
from language_model import Pieces, Shape, initial_state, next_token_loss
from minilm import hidden_states, load_model
from text import source_code
from torch import Tensor
from torch.nn import functional

Size = Literal["tiny", "full"]
_BIAS = "cls.predictions.bias"
_MASKED = 0.15
_HELD_OUT = 0.05  # of the tokens, at their end


class Task(Protocol):
    """What is trained on what.

    Attributes:
        origin: One line that says what weights training starts from.
        rate: Highest learning rate.
        every: Steps from one checkpoint to the next.
    """

    origin: str
    rate: float
    every: int

    def initial(self) -> dict[str, Tensor]:
        """Return the float32 weights that training starts from."""

    def loss(self, state: Mapping[str, Tensor], step: int, held_out: bool = False) -> Tensor:
        """Return the loss of the batch of a step, in nats a token."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A long text as ids, from which steps take random windows.

    Attributes:
        ids: int64.
        texts: Windows a batch.
        length: Tokens a window.
    """

    ids: Tensor
    texts: int
    length: int

    def batch(self, generator: torch.Generator, held_out: bool) -> Tensor:
        """Return ``[texts, length]`` ids, from the last part of the text if held out and otherwise before it."""
        border = int(len(self.ids) * (1 - _HELD_OUT))
        low, high = (border, len(self.ids)) if held_out else (0, border)
        starts = torch.randint(low, high - self.length, (self.texts, 1), generator=generator)
        return self.ids[starts + torch.arange(self.length)]


class LanguageModelling:
    """A decoder from scratch."""

    def __init__(self, size: Size) -> None:
        full = size == "full"
        self._shape = Shape() if full else Shape(vocabulary=512, width=32, layers=2, heads=2, longest=32)
        text = source_code(4_000_000 if full else 50_000)
        ids = Pieces(text, self._shape.vocabulary).encode(text)
        self._tokens = Tokens(ids, 4, 97) if full else Tokens(ids, 4, 17)
        self.origin = f"from scratch: {sum(each.numel() for each in self.initial().values()) / 1e6:.1f} M parameters"
        self.rate, self.every = 1e-3, 20 if full else 5

    def initial(self) -> dict[str, Tensor]:
        """Return seeded random weights."""
        return initial_state(self._shape, seed=0)

    def loss(self, state: Mapping[str, Tensor], step: int, held_out: bool = False) -> Tensor:
        """Return the mean loss of the next token."""
        return next_token_loss(self._shape, state, self._tokens.batch(_generator(step), held_out))


class MaskedTokens:
    """MiniLM, fine-tuned to guess 15 % of the tokens: of these 80 % are masked, 10 % another token, 10 % as they were.

    The output layer is the token embedding (tied, as in BERT) with a bias of its own, zero at first.
    """

    def __init__(self, size: Size) -> None:
        full = size == "full"
        model = load_model(real=full)
        self._weights, self._mask = model.state, model.tokenizer.mask
        ids = torch.tensor(model.tokenizer.encode(source_code(4_000_000 if full else 50_000)))
        self._tokens = Tokens(ids, 4, 96) if full else Tokens(ids, 4, 16)
        self.origin = model.origin
        self.rate, self.every = 5e-5, 20 if full else 5

    def initial(self) -> dict[str, Tensor]:
        """Return the weights of MiniLM and the bias."""
        tokens = len(self._weights[EMBEDDING])
        return {**{name: each.clone() for name, each in self._weights.items()}, _BIAS: torch.zeros(tokens)}

    def loss(self, state: Mapping[str, Tensor], step: int, held_out: bool = False) -> Tensor:
        """Return the mean loss of the tokens to guess."""
        generator = _generator(step)
        wanted = self._tokens.batch(generator, held_out)
        chance = torch.rand(wanted.shape, generator=generator)
        others = torch.randint(len(state[EMBEDDING]), wanted.shape, generator=generator)
        given = torch.where(chance < _MASKED * 0.8, self._mask, wanted)
        given = torch.where((chance >= _MASKED * 0.8) & (chance < _MASKED * 0.9), others, given)
        hidden = hidden_states(state, given, torch.ones_like(given, dtype=torch.bool))
        guessed = chance < _MASKED
        logits = functional.linear(hidden[guessed], state[EMBEDDING], state[_BIAS])
        return functional.cross_entropy(logits, wanted[guessed])


TASKS: Mapping[str, type[LanguageModelling] | type[MaskedTokens]] = {
    "language-model": LanguageModelling,
    "minilm": MaskedTokens,
}


def _generator(step: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 + step)
