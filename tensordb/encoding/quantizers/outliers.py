"""Values so far from all others that share their scale that the scale would be theirs alone.

They are set aside before scales are fitted, and stored exactly: the others keep their detail.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding.quantizers.exceptions import most_exceptions
from tensordb.encoding.quantizers.floats import Floats
from tensordb.encoding.quantizers.sharing import ParameterMap

_FAR = 32.0
"""Times the RMS of the other values. No value of a normal distribution comes near it, and few of a heavy-tailed one."""
_ENOUGH = 7
"""Others that it takes to tell what is usual; the last group of a tensor may have fewer."""
_PASSES = 4


def outliers(values: Floats, where: ParameterMap, largest: float) -> NDArray[np.intp] | None:
    """Return the positions of such values, ascending; None if there are none, or more than can be exceptions.

    Args:
        values: Of all elements, flat; those that are not finite or larger than `largest` are left out.
        where: Which of them share a scale.
        largest: Magnitude above which a value has no code anyway.
    """
    sizes = np.abs(values)
    if not float(sizes.max()) <= largest:
        sizes[~(sizes <= largest)] = 0
    found: list[NDArray[np.intp]] = []
    counts = np.maximum(_counts(where) - 1, 1)
    enough = counts >= _ENOUGH
    for _ in range(_PASSES):
        top = where.reduce(sizes, np.maximum).astype(np.float64)
        with np.errstate(all="ignore"):
            others = np.sqrt(np.maximum(_square_sums(sizes, top, where) - 1, 0) / counts) * top
        suspicious = enough & (top > _FAR * others)
        if not suspicious.any():
            break
        # The largest of all can be too large for that difference to be exact: now the others by themselves.
        rest = np.where(sizes < _spread(top, sizes, where), sizes, 0)
        second = where.reduce(rest, np.maximum).astype(np.float64)
        limits = _FAR * np.sqrt(_square_sums(rest, second, where) / counts) * second
        far = np.flatnonzero(sizes > _spread(np.where(suspicious, limits, np.inf), sizes, where))
        found.append(far)
        sizes[far] = 0
    total = sum(map(len, found))
    return np.sort(np.concatenate(found)) if 0 < total <= most_exceptions(values.size) // 2 else None


def _counts(where: ParameterMap) -> NDArray[np.float64]:
    """Return how many elements share each parameter."""
    if where.elements % (where.inner * where.count) == 0:
        return np.full(where.total, where.elements / where.count)
    sizes = np.diff(np.append(np.arange(0, where.elements, where.inner), where.elements))
    return np.tile(sizes, where.records).astype(np.float64)


def _square_sums(sizes: Floats, unit: NDArray[np.float64], where: ParameterMap) -> NDArray[np.float64]:
    """Return the sums of squares in units of each parameter's own, so that none overflows or vanishes."""
    safe = np.where(unit > 0, unit, 1)
    if sizes.dtype != np.float64:  # float64 holds the squares of any float32
        return np.asarray(where.square_sums(sizes) / safe**2)
    return where.square_sums(sizes / _spread(safe, sizes, where))


def _spread(parameters: NDArray[np.float64], sizes: Floats, where: ParameterMap) -> Floats:
    """Return for each element its parameter."""

    def read(start: int, stop: int) -> Floats:
        return parameters[start:stop]

    near = where.stretch(0, sizes.size, read)
    each: Floats = np.broadcast_to(near.spread()[0], near.shape).reshape(-1)
    return each
