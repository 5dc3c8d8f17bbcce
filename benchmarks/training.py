"""What training leaves behind: Adam's moments of MiniLM, and the activations of a network that has learnt on photos.

Both are short runs of real training on real data, seeded; kernels of other machines may round otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from data import EMBEDDING
from minilm import Model, batch_of, sentence_embeddings
from torch import Tensor, nn
from torch.nn import functional


def adam_moments(model: Model, texts: Sequence[str], steps: int, batch: int = 24) -> tuple[list[Tensor], list[Tensor]]:
    """Fine-tune all of the model and return Adam's first and second moments of two layers and some token embeddings.

    The loss is contrastive: the first half of a sentence should be closer to its second half than to those of others.
    Of the token embeddings every fourth row is kept; rows of tokens that never occurred are zero.
    """
    state = {name: each.clone().requires_grad_() for name, each in model.state.items()}
    optimizer = torch.optim.AdamW(state.values(), lr=2e-5)
    for step in range(steps):
        chosen = [texts[(step * batch + number) % len(texts)].split() for number in range(batch)]
        halves = (
            [" ".join(words[: len(words) // 2]) for words in chosen],
            [" ".join(words[len(words) // 2 :]) for words in chosen],
        )
        left, right = (sentence_embeddings(state, *batch_of(model.tokenizer, half)) for half in halves)
        loss = functional.cross_entropy(left @ right.T * 20, torch.arange(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    kept = [name for name in state if name.startswith(("encoder.layer.0.", "encoder.layer.1."))]
    moments = ([], [])
    for kind, key in zip(moments, ("exp_avg", "exp_avg_sq"), strict=True):
        kind += [optimizer.state[state[EMBEDDING]][key][::4].contiguous()]
        kind += [optimizer.state[state[name]][key] for name in kept if state[name] in optimizer.state]
    return moments


def relu_activations(photos: Tensor, steps: int) -> Tensor:
    """Train a convolutional network to remove noise from photos; return its middle activations, ``[N, 64, h, w]``."""
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()
    )
    decoder = nn.Sequential(nn.Conv2d(64, 48, 3, padding=1), nn.PixelShuffle(4))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
    clean = photos.permute(0, 3, 1, 2).float() / 255
    for step in range(steps):
        batch = clean[step % 4 :: 4]
        loss = functional.mse_loss(decoder(encoder(batch + 0.1 * torch.randn_like(batch))), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return encoder(clean)
