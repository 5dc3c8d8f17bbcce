"""Basic indexing of a stored tensor: which runs of elements an index selects. Knows nothing of bytes.

A selection is taken with ascending positions; where a step is negative, the result is turned round afterwards.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tensordb.errors import InvalidInputError

Index: TypeAlias = Any
"""An int, a slice, an Ellipsis, or a tuple of those."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What an index selects.

    Attributes:
        starts: Flat positions at which runs of selected elements begin, ascending: ``int64[runs]``.
        length: Elements of each run.
        counts: Selected positions in each dimension.
        flips: Dimensions to turn round afterwards.
        shape: Shape of the result: `counts` without the dimensions that an int took away.
    """

    starts: NDArray[np.int64]
    length: int
    counts: tuple[int, ...]
    flips: tuple[int, ...]
    shape: tuple[int, ...]


def select(index: Index, shape: tuple[int, ...]) -> Selection:
    """Return what ``tensor[index]`` selects of a tensor of this shape.

    Raises:
        IndexError: if an int is out of range or there are more indices than dimensions.
        InvalidInputError: if a part is neither int, slice nor Ellipsis.
    """
    ranges, kept = [], []
    for part, size in zip(_full(index, shape), shape, strict=True):
        chosen, keep = _positions(part, size)
        ranges.append(chosen)
        kept.append(keep)
    flips = tuple(axis for axis, chosen in enumerate(ranges) if len(chosen) > 1 and chosen.step < 0)
    ranges = [chosen[::-1] if chosen.step < 0 else chosen for chosen in ranges]
    starts, length = _runs(ranges, shape)
    counts = tuple(len(chosen) for chosen in ranges)
    result = tuple(count for count, keep in zip(counts, kept, strict=True) if keep)
    return Selection(starts, length, counts, flips, result)


@dataclass(frozen=True, slots=True)
class Window:
    """What an index selects, as a strided view of the tensor's elements in row-major order.

    Attributes:
        start: Flat position of the first element selected.
        length: Elements from there to the last one selected; 0 when there are none.
        shape: Shape of the result.
        strides: Elements from one position to the next in each dimension of the result.
    """

    start: int
    length: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def window(index: Index, shape: tuple[int, ...]) -> Window:
    """Return what ``tensor[index]`` selects of a tensor of this shape, without moving anything.

    Raises:
        IndexError: if an int is out of range or there are more indices than dimensions.
        InvalidInputError: if a part is neither int, slice nor Ellipsis, or runs backwards, which torch cannot view.
    """
    start, last, stride = 0, 0, 1
    kept: list[tuple[int, int]] = []
    for part, size in reversed([*zip(_full(index, shape), shape, strict=True)]):
        chosen, keep = _positions(part, size)
        if len(chosen) > 1 and chosen.step < 0:
            raise InvalidInputError(f"{part} runs backwards, which a view cannot; flip a copy (copy=True)")
        if len(chosen):
            start, last = start + chosen[0] * stride, last + chosen[-1] * stride
        if keep:
            kept.append((len(chosen), abs(chosen.step) * stride))
        stride *= size
    counts, strides = tuple(count for count, _ in reversed(kept)), tuple(each for _, each in reversed(kept))
    return Window(start, 0 if 0 in (*counts, *shape) else last - start + 1, counts, strides)


def _full(index: Index, shape: tuple[int, ...]) -> list[Any]:
    """Return one part for each dimension."""
    parts = list(index) if isinstance(index, tuple) else [index]
    dots = [at for at, part in enumerate(parts) if isinstance(part, EllipsisType)]
    if len(dots) > 1:
        raise InvalidInputError("an index can have one Ellipsis; write the other dimensions as slices")
    given = len(parts) - len(dots)
    if given > len(shape):
        raise IndexError(f"{given} indices for a tensor with {len(shape)} dimensions, shape {shape}")
    at = dots[0] if dots else len(parts)
    return parts[:at] + [slice(None)] * (len(shape) - given) + parts[at + len(dots) :]


def _positions(part: Any, size: int) -> tuple[range, bool]:
    """Return the selected positions of a dimension and whether the dimension stays."""
    if isinstance(part, slice):
        try:
            return range(size)[part], True
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"slice {part} cannot be used: {error}") from error
    try:
        position = None if isinstance(part, bool) else operator.index(part)
    except TypeError:
        position = None
    if position is None:
        raise InvalidInputError(f"cannot index with {part!r}; use ints, slices and Ellipsis")
    if not -size <= position < size:
        raise IndexError(f"index {position} is out of range for a dimension of {size}")
    position %= size
    return range(position, position + 1), False


def _runs(ranges: list[range], shape: tuple[int, ...]) -> tuple[NDArray[np.int64], int]:
    """Return starts and length of the runs; dimensions taken whole or without gaps at the end make the run longer."""
    if any(len(chosen) == 0 for chosen in ranges):
        return np.empty(0, np.int64), 0
    length, axis = 1, len(shape)
    while axis and len(ranges[axis - 1]) == shape[axis - 1]:
        axis -= 1
        length *= shape[axis]
    starts = np.zeros(1, np.int64)
    stride = length
    if axis and (ranges[axis - 1].step == 1 or len(ranges[axis - 1]) == 1):
        axis -= 1
        starts = starts + ranges[axis].start * stride
        length *= len(ranges[axis])
        stride *= shape[axis]
    for at in range(axis - 1, -1, -1):
        chosen = np.array(ranges[at], np.int64) * stride
        starts = (chosen[:, None] + starts).reshape(-1)
        stride *= shape[at]
    return starts, length


def chunk_of_runs(starts: NDArray[np.int64], length: int, chunk: int) -> NDArray[np.int64]:
    """Return the chunks of `chunk` elements that the runs touch, ascending, each once."""
    first, last = starts // chunk, (starts + length - 1) // chunk
    touched = np.concatenate([first, last]) if int((last - first).max(initial=0)) < 2 else _all_between(first, last)
    return np.unique(touched)


def _all_between(first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
    counts = last - first + 1
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    between: NDArray[np.int64] = np.repeat(first, counts) + within
    return between
