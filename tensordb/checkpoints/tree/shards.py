"""Tensors whose values lie in several parts: boxes of the whole, as processes that share a model hold them.

Invariants: the boxes of a tensor that is written do not overlap and leave nothing out; those read from a document are
checked for that as far as its memory is concerned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tensordb.errors import IntegrityError
from tensordb.model import TensorSpec
from tensordb.tensors import dtype_name, empty

FORM = "shards"
_MARK = "shard("
Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Where a part begins in each dimension, and how long it is there."""


@dataclass(frozen=True, slots=True, eq=False)
class Sharded:
    """A tensor in a tree that is given in parts.

    Attributes:
        shape: Of the whole.
        boxes: What each part covers.
        parts: What stands for them; each becomes a leaf.
    """

    shape: tuple[int, ...]
    boxes: tuple[Box, ...]
    parts: tuple[torch.Tensor, ...]


def form_of(sharded: Sharded) -> tuple[Any, ...]:
    """Return how the parts are put together, as plain values."""
    return (FORM, sharded.shape, sharded.boxes)


def check_form(form: tuple[Any, ...]) -> None:
    """Raise IntegrityError when this, read from a document, does not describe a tensor in parts."""
    _, shape, boxes = form
    if not _is_shape(shape) or type(boxes) is not tuple or not all(_is_box(box, len(shape)) for box in boxes):
        raise IntegrityError(f"a document describes a tensor as {form!r:.200}, which no document is written with")


def part_name(box: Box) -> str:
    """Return what a part is called behind the name of its tensor.

    >>> part_name(((64, 0), (64, 32)))
    'shard(64,0)'
    """
    return f"{_MARK}{','.join(map(str, box[0]))})"


def name_of_whole(name: str) -> str:
    """Return the name of the tensor that a part belongs to.

    >>> name_of_whole("model.layer.weight.shard(64,0)")
    'model.layer.weight'
    """
    return name.rpartition(f".{_MARK}")[0] if name.endswith(")") and f".{_MARK}" in name else name


def assemble(form: tuple[Any, ...], parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the whole tensor of these parts.

    Raises:
        IntegrityError: The parts do not fit their boxes, or leave something out.
    """
    _, shape, boxes = form
    if len({(part.dtype, part.device) for part in parts}) != 1 or sum(map(torch.numel, parts)) != math.prod(shape):
        raise IntegrityError(f"the {len(parts)} parts of a tensor of shape {shape} do not make up the whole")
    whole = _empty_like(parts[0], shape)
    for (offsets, sizes), part in zip(boxes, parts, strict=True):
        if part.shape != sizes:
            raise IntegrityError(f"a part of a tensor has shape {tuple(part.shape)} in place of {sizes}")
        box_of(whole, offsets, sizes).copy_(part)
    return whole


def box_of(whole: torch.Tensor, offsets: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
    """Return a box of a tensor, as a view."""
    for dimension, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
        whole = whole.narrow(dimension, offset, size)
    return whole


def _empty_like(part: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if part.device.type == "cpu":
        return empty(TensorSpec(dtype_name(part.dtype), shape))
    return part.new_empty(shape)


def _is_box(box: Any, rank: int) -> bool:
    return type(box) is tuple and len(box) == 2 and all(_is_shape(each) and len(each) == rank for each in box)


def _is_shape(value: Any) -> bool:
    return type(value) is tuple and all(type(each) is int and 0 <= each < 1 << 62 for each in value)
