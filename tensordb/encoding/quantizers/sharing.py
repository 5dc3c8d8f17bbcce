"""Which scale belongs to which element, for whole tensors and for stretches of them. Arithmetic only.

In a page every record is quantized by itself, so it has parameters of its own whatever the granularity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding.quantizers.granularity import Granularity, PerChannel, PerGroup, PerRow, PerTensor
from tensordb.errors import InvalidInputError

Floats: TypeAlias = NDArray[Any]
ReadParameters = Callable[[int, int], Floats]
"""``read(start, stop)`` gives the parameters with these positions."""

_LONG_ROW = 64


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
            case PerGroup(size):
                return cls(records, elements, size, -(-elements // size))
            case PerChannel(axis):
                if not -len(shape) <= axis < len(shape):
                    raise InvalidInputError(
                        f"axis {axis} is out of range for shape {shape}; choose one of its dimensions"
                    )
                axis %= len(shape)
                return cls(records, elements, math.prod(shape[axis + 1 :]), shape[axis])
            case PerRow() if len(shape) > 1 and math.prod(shape[1:]) >= _LONG_ROW:
                return cls(records, elements, math.prod(shape[1:]), shape[0])
            case PerRow() | PerTensor():
                return cls(records, elements, elements, 1)

    @property
    def total(self) -> int:
        """Parameters of all records."""
        return self.records * self.count

    def reduce(self, values: Floats, ufunc: np.ufunc) -> Floats:
        """Return ``ufunc`` (minimum or maximum) over the elements of each parameter: ``[total]``."""
        if self.elements % (self.inner * self.count) == 0:
            split = values.reshape(self.records, -1, self.count, self.inner)
            return np.asarray(ufunc.reduce(split, axis=(1, 3))).reshape(-1)
        rows = values.reshape(self.records, self.elements)
        return np.asarray(ufunc.reduceat(rows, np.arange(0, self.elements, self.inner), axis=1)).reshape(-1)

    def square_sums(self, values: Floats) -> NDArray[np.float64]:
        """Return the sum of the squares of each parameter's elements, in float64: ``[total]``."""
        if self.elements % (self.inner * self.count) == 0:
            split = values.reshape(self.records, -1, self.count, self.inner)
            return np.asarray(np.einsum("roci,roci->rc", split, split, dtype=np.float64)).reshape(-1)
        rows = values.reshape(self.records, self.elements)
        head = self.elements // self.inner * self.inner
        whole, rest = rows[:, :head].reshape(self.records, -1, self.inner), rows[:, head:]
        sums = np.einsum("rci,rci->rc", whole, whole, dtype=np.float64)
        last = np.einsum("ri,ri->r", rest, rest, dtype=np.float64)
        return np.concatenate([sums, last[:, None]], axis=1).reshape(-1)

    def needed(self, start: int, stop: int) -> tuple[int, int]:
        """Return the range of parameters that elements start to stop need; of several records whole ones."""
        if self.records > 1:
            return start // self.elements * self.count, -(-stop // self.elements) * self.count
        first, last = start // self.inner, -(-stop // self.inner)
        return (first, last) if last <= self.count else (0, self.count)

    def stretch(self, start: int, stop: int, *reads: ReadParameters) -> Stretch:
        """Return elements start to stop with their parameters; with several records whole records only."""
        first, last = self.needed(start, stop)
        return Stretch(self, start, stop, tuple(read(first, last) for read in reads))

    def whole(self, arrays: tuple[Floats, ...], records: int) -> Stretch:
        """Return the stretch of as many whole records as this, with all their parameters."""
        return Stretch(replace(self, records=records), 0, records * self.elements, arrays)


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """A range of elements with the parameters that they need.

    Attributes:
        where: Which parameter belongs to which element.
        start: First element.
        stop: The one after the last.
        parameters: For each array those of ``where.needed(start, stop)``, float32.
    """

    where: ParameterMap
    start: int
    stop: int
    parameters: tuple[Floats, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """``(records, elements each)``, as spread parameters broadcast to it."""
        count = self.stop - self.start
        return (count // self.where.elements, self.where.elements) if self.where.records > 1 else (1, count)

    @property
    def places(self) -> tuple[int, int, int, int, int]:
        """First parameter, first element, inner, count and elements of a record, as compiled loops take them."""
        where = self.where
        return where.needed(self.start, self.stop)[0], self.start, where.inner, where.count, where.elements

    def spread(self) -> tuple[Floats, ...]:
        """Return the parameters so that they broadcast to `shape`."""
        if self.where.count == 1:
            return tuple(each.reshape(-1, 1) for each in self.parameters)
        spread = self._over_records if self.where.records > 1 else self._within
        return tuple(map(spread, self.parameters))

    def _over_records(self, parameters: Floats) -> Floats:
        where = self.where
        spread = np.repeat(parameters.reshape(-1, where.count), where.inner, axis=1)
        if spread.shape[1] < where.elements:
            spread = np.tile(spread, (1, where.elements // spread.shape[1]))
        return spread[:, : where.elements]

    def _within(self, parameters: Floats) -> Floats:
        where = self.where
        first, last = self.start // where.inner, -(-self.stop // where.inner)
        if last > where.count:
            parameters = np.resize(np.roll(parameters, -(first % where.count)), last - first)
        lengths = np.full(last - first, where.inner)
        lengths[0] -= self.start - first * where.inner
        lengths[-1] -= last * where.inner - self.stop
        return (parameters if where.inner == 1 else np.repeat(parameters, lengths)).reshape(1, -1)
