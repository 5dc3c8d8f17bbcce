"""Statistics of a tensor's values, for every row of a page or for all of it: what a catalog knows without reading it.

Everything is calculated in float64, over the finite values; `FIELDS` says what each number is. Compiled loops and NumPy
agree to a relative 1e-9 or better, since they add in another order; least and largest values, and counts, are exact.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tensordb.encoding import kernels
from tensordb.encoding.workers import for_each

FIELDS = ("min", "max", "mean", "std", "norm", "zeros", "non_finite")
"""Columns of the result: over the finite values the least and largest one, the mean, the standard deviation of the
population and the L2 norm; then how many values are zero (of either sign), and how many are NaN or infinite.

Complex numbers count by their magnitude, booleans as 0 and 1. Where there is no finite value the first four are NaN,
and the norm is 0. Integers beyond 2**53 are rounded to the nearest float64; a norm beyond its range is infinite.
"""

_BLOCK = 1 << 15
"""Values that are worked on at a time: in float64 they stay in the second-level cache."""
_PART = 1 << 20
"""Values of one tensor that one thread goes through."""
_SAFE = (1e-140, 1e140)
"""Magnitudes whose squares float64 adds without overflow and without losing them."""

Statistics = NDArray[np.float64]
_Partial = NDArray[np.float64]
"""Of each row: min, max, mean, squared deviations from it, squares, zeros, values that are not finite."""


@np.errstate(all="ignore")
def summarize(tensor: torch.Tensor, *, page: bool = False) -> Statistics:
    """Return the statistics of a contiguous CPU tensor, a row of `FIELDS` for each record: of a page, each row is one.

    >>> dict(zip(FIELDS, summarize(torch.tensor([0.0, 3.0, 4.0, float("inf")]))[0].round(3).tolist()))
    {'min': 0.0, 'max': 4.0, 'mean': 2.333, 'std': 1.7, 'norm': 5.0, 'zeros': 1.0, 'non_finite': 1.0}
    """
    records = tensor.shape[0] if page else 1
    # Of complex32 torch knows little, and warns of each new one.
    whole = torch.view_as_real(tensor).to(torch.float32) if tensor.dtype == torch.complex32 else tensor
    flat = torch.view_as_complex(whole).reshape(-1) if whole is not tensor else tensor.detach().reshape(-1)
    size = flat.numel() // max(records, 1)
    if not flat.numel():
        return np.tile([math.nan] * 4 + [0.0] * 3, (records, 1))
    partial = _of_rows(flat, size) if page or size <= _PART else _merged(_in_parts(flat))
    finite = size - partial[:, 6]
    partial[:, 3] = np.sqrt(partial[:, 3] / finite)
    partial[:, 4] = np.sqrt(partial[:, 4])
    partial[finite == 0, :4] = math.nan
    partial[:, :2] += 0.0  # a zero of either sign becomes 0.0
    _mend_extremes(partial, flat, size)
    return partial


@np.errstate(all="ignore")  # again: other threads have a state of their own
def _of_rows(flat: torch.Tensor, size: int) -> _Partial:
    """Return the sums of each `size` values; what is no float of 4 or 8 bytes is converted block by block."""
    if flat.dtype in (torch.float32, torch.float64):
        return _of_floats(flat.numpy(), size)
    rows = flat.numel() // size
    out = np.empty((rows, 7))
    step = max(1, _BLOCK // size)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        out[first:last] = _of_floats(_floats(flat[first * size : last * size]).numpy(), size)
    return out


def _in_parts(flat: torch.Tensor) -> tuple[_Partial, NDArray[np.int64]]:
    """Return the sums of all parts of a large tensor, worked on by all cores, and how many values each has."""
    starts = range(0, flat.numel(), _PART)
    out = np.empty((len(starts), 7))
    lengths = np.minimum(_PART, flat.numel() - np.array(starts))

    def work(index: int) -> None:
        part = flat[starts[index] : starts[index] + _PART]
        # Converted in pieces that stay in the cache, and put together again.
        inner = range(0, part.numel(), _BLOCK) if flat.dtype not in (torch.float32, torch.float64) else (0,)
        pieces = [part[at : at + _BLOCK] if len(inner) > 1 else part for at in inner]
        sums = np.concatenate([_of_rows(piece, piece.numel()) for piece in pieces])
        out[index] = _merged((sums, np.array([piece.numel() for piece in pieces])))[0]

    for_each(len(starts), work)
    return out, lengths


@np.errstate(all="ignore")
def _merged(parts: tuple[_Partial, NDArray[np.int64]]) -> _Partial:
    """Return the sums of all parts as one row."""
    sums, lengths = parts
    counts = lengths - sums[:, 6]
    some = sums[counts > 0]
    weights = counts[counts > 0]
    if not len(some):
        return np.array([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, sums[:, 6].sum()]])
    mean = (some[:, 2] * (weights / weights.sum())).sum()
    deviations = some[:, 3].sum() + (weights * (some[:, 2] - mean) ** 2).sum()
    least, largest = some[:, 0].min(), some[:, 1].max()
    return np.array([[least, largest, mean, deviations, some[:, 4].sum(), *sums[:, 5:].sum(0)]])


def _floats(flat: torch.Tensor) -> torch.Tensor:
    """Return the values as floats of 4 or 8 bytes that hold them, complex numbers as their magnitudes."""
    if flat.is_complex():
        return flat.to(torch.complex128).abs()  # in which no magnitude of complex64 overflows
    return flat.to(torch.float32 if flat.dtype.itemsize <= 2 else torch.float64)


def _of_floats(values: NDArray[Any], size: int) -> _Partial:
    loops = kernels.ready_to_sum(values.nbytes)
    if loops is None or not values.flags.aligned:
        return _by_numpy(values.reshape(-1, size))
    rows = values.size // size
    word = np.dtype(f"i{values.itemsize}")
    extremes, sums = np.empty((rows, 2), word), np.empty((rows, 5))
    loops.summarize[values.itemsize](values.view(word), values, size, extremes, sums)
    mask = np.iinfo(word).max
    ordered = (extremes ^ ((extremes >> (8 * values.itemsize - 1)) & mask)).view(values.dtype)
    return np.concatenate([ordered.astype(np.float64), sums], 1)


def _by_numpy(rows: NDArray[Any]) -> _Partial:
    out = np.empty((len(rows), 7))
    step = max(1, _BLOCK // rows.shape[1])
    for first in range(0, len(rows), step):
        _by_numpy_block(rows[first : first + step].astype(np.float64), out[first : first + step])
    return out


def _by_numpy_block(rows: NDArray[np.float64], out: _Partial) -> None:
    finite = np.isfinite(rows)
    whole = bool(finite.all())
    out[:, 6] = 0 if whole else rows.shape[1] - finite.sum(1)
    out[:, 5] = rows.shape[1] - np.count_nonzero(rows, 1)
    if whole:
        out[:, 0], out[:, 1] = rows.min(1), rows.max(1)
    else:
        out[:, 0] = np.where(finite, rows, math.inf).min(1)
        out[:, 1] = np.where(finite, rows, -math.inf).max(1)
        rows = np.where(finite, rows, 0.0)
    out[:, 4] = np.einsum("ij,ij->i", rows, rows)
    out[:, 2] = rows.sum(1) / np.maximum(rows.shape[1] - out[:, 6], 1)
    rows = rows - out[:, 2:3]
    if not whole:
        rows[~finite] = 0.0
    out[:, 3] = np.einsum("ij,ij->i", rows, rows)


def _mend_extremes(found: Statistics, flat: torch.Tensor, size: int) -> None:
    """Calculate again, divided by the largest magnitude, the rows whose squares float64 does not hold."""
    if flat.dtype not in (torch.float64, torch.complex128):  # others are well within its range
        return
    largest = np.abs(found[:, :2]).max(1)
    for row in np.flatnonzero((largest > _SAFE[1]) | ((largest < _SAFE[0]) & (largest > 0))).tolist():
        values = _floats(flat[row * size : (row + 1) * size]).numpy()
        values = values[np.isfinite(values)] / largest[row]
        found[row, 2:5] = np.array([values.mean(), values.std(), np.linalg.norm(values)]) * largest[row]
