"""The kinds of tensors that benchmarks of encoding run on: real ones, made in seconds, the same every time.

A kind is a list of tensors of one dtype. Repetition is kept out: no kind is
a smaller one tiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from minilm import Model, embed, load_model
from photos import crops
from safetensors.torch import load_file, save_file
from text import documents, sentences
from torch import Tensor
from training import adam_moments, relu_activations


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of each kind.

    Attributes:
        characters: Of text.
        sentences: Of which embeddings are made.
        steps: Of training.
        photos: Crops of photos.
        side: Of a crop, in pixels.
        rows: Most rows of a weight matrix; 0 for all.
    """

    characters: int
    sentences: int
    steps: int
    photos: int
    side: int
    rows: int


FULL = Sizes(characters=5_000_000, sentences=5_500, steps=24, photos=64, side=224, rows=0)
TINY = Sizes(characters=200_000, sentences=24, steps=1, photos=4, side=32, rows=16)


class Sources:
    """What kinds are made from, each made once."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    @cached_property
    def model(self) -> Model:
        """MiniLM."""
        return load_model()

    @cached_property
    def weights(self) -> list[Tensor]:
        """All float32 tensors of the model."""
        return [each[: self.sizes.rows or None].clone() for each in self.model.state.values()]

    @cached_property
    def texts(self) -> list[str]:
        """English text."""
        return documents(self.sizes.characters)

    @cached_property
    def token_rows(self) -> list[list[int]]:
        """Ids of the tokens of each text."""
        return [self.model.tokenizer.encode(text) for text in self.texts]

    @cached_property
    def sentence_embeddings(self) -> Tensor:
        """Embeddings of sentences, ``[N, 384]``."""
        return embed(self.model, sentences(self.texts, self.sizes.sentences))

    @cached_property
    def moments(self) -> tuple[list[Tensor], list[Tensor]]:
        """First and second moments of Adam."""
        kinds = adam_moments(self.model, sentences(self.texts, 1000), self.sizes.steps)
        return tuple([each[: self.sizes.rows or None] for each in kind] for kind in kinds)

    @cached_property
    def images(self) -> Tensor:
        """Crops of photos, ``[N, side, side, 3]``."""
        return crops(self.sizes.photos, self.sizes.side)


def _as(dtype: torch.dtype) -> Callable[[Sources], list[Tensor]]:
    return lambda sources: [each.to(dtype) for each in sources.weights]


def _float8(sources: Sources) -> list[Tensor]:
    """Each matrix scaled to the range of e4m3, as fp8 checkpoints are."""
    return [(each * (448 / each.abs().max())).to(torch.float8_e4m3fn) for each in sources.weights if each.ndim == 2]


def _similarities(sources: Sources) -> list[Tensor]:
    exact = sources.sentence_embeddings.double()
    return [exact[: len(exact) // 5] @ exact[-len(exact) // 5 :].T]


def _token_ids(sources: Sources) -> list[Tensor]:
    ids = torch.tensor([number for row in sources.token_rows for number in row])
    return [ids[: len(ids) // 256 * 256].reshape(-1, 256)]


def _positions(sources: Sources) -> list[Tensor]:
    """Where each word ends in its text, as the offsets that tokenizers return."""
    ends = [at for text in sources.texts for at, sign in enumerate(text) if sign in " \n"]
    return [torch.tensor(ends, dtype=torch.int32)]


def _gradients(sources: Sources) -> list[Tensor]:
    wide = sources.images.to(torch.int16)
    return [2 * (wide[:, :, 2:] - wide[:, :, :-2])]


def _masks(sources: Sources) -> list[Tensor]:
    """Bright parts of photos, and which of 256 tokens of a row are text and not padding."""
    light = sources.images.float().mean(-1)
    lengths = torch.tensor([len(row) for row in sources.token_rows]).clamp(max=256)
    return [light > light.mean((1, 2), keepdim=True), torch.arange(256) < lengths[:, None]]


KINDS: dict[str, Callable[[Sources], list[Tensor]]] = {
    "weights fp32": lambda sources: sources.weights,
    "weights bf16": _as(torch.bfloat16),
    "weights fp16": _as(torch.float16),
    "weights fp8": _float8,
    "embeddings fp32": lambda sources: [sources.sentence_embeddings],
    "adam m fp32": lambda sources: sources.moments[0],
    "adam v fp32": lambda sources: sources.moments[1],
    "relu fp32": lambda sources: [relu_activations(sources.images[:16], 8 * sources.sizes.steps)],
    "similarities fp64": _similarities,
    "token ids int64": _token_ids,
    "offsets int32": _positions,
    "gradients int16": _gradients,
    "images uint8": lambda sources: [sources.images],
    "masks bool": _masks,
}


def write_kinds(folder: Path, names: Sequence[str], sizes: Sizes) -> str:
    """Write each kind to a file of `folder`, ``{name}.safetensors``; return where the weights come from."""
    sources = Sources(sizes)
    for name in names:
        tensors = {str(number): each.contiguous() for number, each in enumerate(KINDS[name](sources))}
        save_file(tensors, folder / f"{name}.safetensors")
    return sources.model.origin


def read_kind(folder: Path, name: str) -> list[Tensor]:
    """Return the tensors of a kind in memory of their own."""
    tensors = load_file(folder / f"{name}.safetensors")
    return [tensors[key].clone() for key in sorted(tensors, key=int)]
