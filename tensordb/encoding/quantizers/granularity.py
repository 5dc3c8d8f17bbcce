"""How many elements share one scale: per tensor, per channel or per group, and which scale belongs to which element.

In a page every record is quantized by itself, so it has parameters of its own whatever the granularity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tensordb.errors import InvalidInputError

Floats: TypeAlias = NDArray[Any]
ReadParameters = Callable[[int, int], Floats]
"""``read(start, stop)`` gives the parameters with these positions."""


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole tensor."""


@dataclass(frozen=True, slots=True)
class PerChannel:
    """One scale for each position along `axis` (negative counts from the end)."""

    axis: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.axis, bool) or not isinstance(self.axis, int) or not -64 <= self.axis < 64:
            raise InvalidInputError(f"axis {self.axis!r} is no dimension; use an int from -64 to 63")


@dataclass(frozen=True, slots=True)
class PerGroup:
    """One scale for each `size` consecutive elements in row-major order; the last group may be shorter."""

    size: int = 128

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not 8 <= self.size <= 1 << 20:
            raise InvalidInputError(f"group size {self.size!r} cannot be used; use an int from 8 to {1 << 20}")


Granularity: TypeAlias = PerTensor | PerChannel | PerGroup


@dataclass(frozen=True, slots=True)
class ParameterMap:
    """Which parameter belongs to which element.

    Element `e` of a record has the record's parameter ``e // inner % count``.

    Attributes:
        records: Records that were quantized by themselves: 1, or the rows of a page.
        elements: Elements of a record.
        inner: Consecutive elements that share a parameter.
        count: Parameters of a record.
    """

    records: int
    elements: int
    inner: int
    count: int

    @classmethod
    def of(cls, granularity: Granularity, shape: tuple[int, ...], records: int) -> ParameterMap:
        """Return the map for `records` records of this shape.

        Raises:
            InvalidInputError: if the shape lacks the axis.
        """
        elements = math.prod(shape)
        match granularity:
            case PerTensor():
                return cls(records, elements, elements, 1)
            case PerGroup(size):
                return cls(records, elements, size, -(-elements // size))
            case PerChannel(axis):
                if not -len(shape) <= axis < len(shape):
                    raise InvalidInputError(
                        f"axis {axis} is out of range for shape {shape}; choose one of its dimensions"
                    )
                axis %= len(shape)
                return cls(records, elements, math.prod(shape[axis + 1 :]), shape[axis])

    @property
    def total(self) -> int:
        """Parameters of all records."""
        return self.records * self.count

    def shape_of(self, count: int) -> tuple[int, int]:
        """Return ``(records, elements each)`` of a range of `count` elements, as parameters broadcast to it."""
        return (count // self.elements, self.elements) if self.records > 1 else (1, count)

    def reduce(self, values: Floats, ufunc: np.ufunc) -> Floats:
        """Return ``ufunc`` (minimum or maximum) over the elements of each parameter: ``[total]``."""
        if self.elements % (self.inner * self.count) == 0:
            split = values.reshape(self.records, -1, self.count, self.inner)
            return np.asarray(ufunc.reduce(split, axis=(1, 3))).reshape(-1)
        rows = values.reshape(self.records, self.elements)
        return np.asarray(ufunc.reduceat(rows, np.arange(0, self.elements, self.inner), axis=1)).reshape(-1)

    def for_range(self, read: ReadParameters, start: int, stop: int) -> Floats:
        """Return the parameters of flat elements start to stop, broadcastable to ``[records touched, elements each]``.

        With several records the range holds whole ones.
        """
        if self.records > 1:
            first, last = start // self.elements, stop // self.elements
            return self._spread(read(first * self.count, last * self.count).reshape(-1, self.count))
        if self.count == 1:
            return read(0, 1).reshape(1, 1)
        return self._spread_within(read, start, stop).reshape(1, -1)

    def for_records(self, read: ReadParameters, rows: NDArray[np.int64]) -> Floats:
        """Return the parameters of whole records, broadcastable to ``[rows, elements]``."""
        return self._spread(read(0, self.total).reshape(self.records, self.count)[rows])

    def _spread(self, parameters: Floats) -> Floats:
        if self.count == 1:
            return parameters
        spread = np.repeat(parameters, self.inner, axis=1)
        if spread.shape[1] < self.elements:
            spread = np.tile(spread, (1, self.elements // spread.shape[1]))
        return spread[:, : self.elements]

    def _spread_within(self, read: ReadParameters, start: int, stop: int) -> Floats:
        first, last = start // self.inner, -(-stop // self.inner)
        if last <= self.count:
            runs = read(first, last)
        else:
            runs = np.resize(np.roll(read(0, self.count), -(first % self.count)), last - first)
        lengths = np.full(last - first, self.inner)
        lengths[0] -= start - first * self.inner
        lengths[-1] -= last * self.inner - stop
        return runs if self.inner == 1 else np.repeat(runs, lengths)
