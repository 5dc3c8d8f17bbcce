"""What of a tensor is looked at: some of its elements for statistics, and a part that makes a picture.

Bounded: however large the tensor, no more than `ALL` elements are read for figures, and `SIDE` times `SIDE` for a
picture. Works on any dtype, strides and device, and copies nothing but what is picked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

ALL = 1 << 18
"""Elements up to which all of them are read; of a larger tensor so many, drawn at random with a fixed seed."""
SIDE = 128
"""Rows and columns of a picture; of a longer side so many, evenly spread."""
_LINE = 512
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHANNELS = (1, 3, 4)

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Picture:
    """A part of a tensor that can be drawn.

    Attributes:
        kind: ``"image"``: ``[rows, columns, 3]`` from 0 to 1. ``"heatmap"``: ``[rows, columns]``. ``"line"``:
            ``[elements]``.
        values: The numbers; magnitudes of complex ones.
        steps: How many elements of the tensor one of the picture stands for, along each side.
        title: Which part it is, such as ``"[0, :, :]"``; empty for all of the tensor.
    """

    kind: Literal["image", "heatmap", "line"]
    values: Numbers
    steps: tuple[float, ...]
    title: str


def sample_of(tensor: torch.Tensor) -> Numbers:
    """Return all elements, or `ALL` of them, as float64 ``[elements]``; of complex ones the magnitudes."""
    count = tensor.numel()
    if count <= ALL:
        return _picked(tensor, [torch.arange(size) for size in tensor.shape]).reshape(-1)
    places = np.random.default_rng(0).integers(0, count, ALL)
    index = np.unravel_index(places, tuple(tensor.shape))
    return _numbers(_words(tensor)[tuple(torch.from_numpy(each).to(tensor.device) for each in index)], tensor)


def picture_of(tensor: torch.Tensor) -> Picture | None:
    """Return the part of a tensor to draw; None for one without elements, or with a single one."""
    if tensor.numel() < 2:
        return None
    if max(tensor.shape) == tensor.numel():
        return _line(tensor.reshape(-1))
    image = _image(tensor)
    if image is not None:
        return image
    last = [axis for axis, size in enumerate(tensor.shape) if size > 1][-2:]
    places = [_spread(size) if axis in last else torch.zeros(1).long() for axis, size in enumerate(tensor.shape)]
    values = _picked(tensor, places).reshape(len(places[last[0]]), len(places[last[1]]))
    title = ", ".join(":" if axis in last else "0" for axis in range(tensor.ndim))
    whole = math.prod(tensor.shape[axis] for axis in last) == tensor.numel()
    steps = tuple(tensor.shape[axis] / len(places[axis]) for axis in last)
    return Picture("heatmap", values, steps, "" if whole else f"[{title}]")


def _line(flat: torch.Tensor) -> Picture:
    places = _spread(len(flat), _LINE)
    return Picture("line", _picked(flat, [places]), (len(flat) / len(places),), "")


def _image(tensor: torch.Tensor) -> Picture | None:
    """Return an image of bytes, or of numbers from 0 to 1, whose channels come first or last."""
    if tensor.ndim != 3 or (tensor.dtype != torch.uint8 and not tensor.is_floating_point()):
        return None
    last = tensor.shape[2] in _CHANNELS and tensor.shape[0] not in _CHANNELS
    if not last and tensor.shape[0] not in _CHANNELS:
        return None
    channels, height, width = (2, 0, 1) if last else (0, 1, 2)
    if min(tensor.shape[height], tensor.shape[width]) < 2:
        return None
    places = [_spread(size) for size in tensor.shape]
    values = _picked(tensor, places).transpose(height, width, channels)
    if tensor.dtype == torch.uint8:
        values = values / 255
    elif tensor.shape[channels] == 1 or not (values.min() >= 0 and values.max() <= 1):
        return None
    steps = tuple(tensor.shape[axis] / len(places[axis]) for axis in (height, width))
    return Picture("image", np.repeat(values, 3, 2) if values.shape[2] == 1 else values[..., :3], steps, "")


def _spread(size: int, most: int = SIDE) -> torch.Tensor:
    return torch.arange(size) if size <= most else torch.linspace(0, size - 1, most).round().long()


def _picked(tensor: torch.Tensor, places: list[torch.Tensor]) -> Numbers:
    words = _words(tensor)
    for axis, each in enumerate(places):
        if len(each) < tensor.shape[axis]:
            words = words.index_select(axis, each.to(tensor.device))
    return _numbers(words, tensor)


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """Return the elements as integers of their size, which torch can pick of every dtype; of complex ones pairs."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    plain = torch.view_as_real(plain) if plain.is_complex() else plain
    return plain.view(_WORDS[plain.element_size()])


def _numbers(words: torch.Tensor, like: torch.Tensor) -> Numbers:
    dtype = like.dtype.to_real() if like.is_complex() else like.dtype
    values = words.cpu().contiguous().view(dtype)
    if dtype.itemsize == 1 and dtype.is_floating_point:
        values = values.to(torch.float32)  # the only step that every 8-bit float has
    numbers: Numbers = values.to(torch.float64).numpy()
    if not like.is_complex():
        return numbers
    with np.errstate(over="ignore", invalid="ignore"):
        return np.hypot(numbers[..., 0], numbers[..., 1])
