"""What the writer that is killed writes: each value follows from a number, so that whoever looks can make it again."""

from __future__ import annotations

from typing import Any

import torch

from .programs import made


def document_of(row: list[Any]) -> dict[str, Any]:
    """Return the metadata of a record, with text that an index can find it by."""
    return {"seed": row[0], "size": row[1], "version": row[2], "tag": tag_of(row[0])}


def tag_of(seed: int) -> str:
    """Return one of a few texts."""
    return f"tag {seed % 5}"


def state_of(run: str, step: int) -> dict[str, torch.Tensor]:
    """Return what a checkpoint holds: weights that drift from step to step, some that stay, and some of its own."""
    seed = sum(map(ord, run))
    weight = made(seed, 20_000).bfloat16()
    weight[step % 50 :: 50] *= 2
    return {"w": weight, "own": made(seed * 10_000 + step, 3000), "frozen": torch.ones(9000)}


def note_of(step: int) -> str:
    """Return text that is now in the checkpoint's row and now an object."""
    return f"{step} " * (6000 if step % 3 == 0 else 1)


def weight_of(seed: int) -> torch.Tensor:
    """Return a weight; odd ones differ a little from the even one before."""
    tensor = made(seed - seed % 2, 6000)
    tensor[: seed % 2] = 1
    return tensor


def imported(seed: int) -> dict[str, Any]:
    """Return the columns of a dataset that is imported: small ones for a page, of which each is known by its place."""
    return {"x": torch.stack([made(seed + i, 300) for i in range(8)]), "place": list(range(8))}


def name_of(seed: int) -> str:
    """Return the name of the dataset that was imported."""
    return f"imported {seed}"
