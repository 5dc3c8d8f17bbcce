"""How far two tensors are from each other, piece by piece, summed in float64.

Figures are of the elements that are finite in both tensors; how many are not is counted. Nothing overflows or vanishes
on the way: what float64 could not square is scaled by the largest value met so far.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

_BLOCK = 1 << 18
"""Elements converted to float64 at a time: 2 MiB, which stay in the cache until they are summed."""
_EXACT = float(1 << 62)
_WIDE = (torch.float64, torch.complex128)
_LONG = (torch.int64, torch.uint64)


@dataclass(frozen=True, slots=True)
class Distance:
    """How far tensor b is from tensor a.

    Attributes:
        same_bits: Whether all bits are equal, which NaN and the sign of zero are part of.
        relative_l2: L2 norm of the difference over that of a; infinite when a is zero. None without finite elements.
        cosine: Of the angle between the two; None when one is zero.
        max_abs: Largest difference of an element.
        not_finite: Elements that are not finite in one of the two, which the figures leave out.
    """

    same_bits: bool
    relative_l2: float | None
    cosine: float | None
    max_abs: float | None
    not_finite: int


def distance(pieces: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Distance:
    """Return the distance of two tensors given as pieces of equal shapes: dense CPU tensors of any dtypes.

    Complex numbers count as pairs, bool as 0 and 1.

    >>> distance([(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))]).relative_l2
    0.1
    """
    sums, same = _Sums(), True
    for a, b in pieces:
        flat_a, flat_b = _flat(a), _flat(b)
        wide = a.dtype in _WIDE or b.dtype in _WIDE
        for begin in range(0, len(flat_a), _BLOCK):
            x, y = flat_a[begin : begin + _BLOCK], flat_b[begin : begin + _BLOCK]
            same = same and a.dtype == b.dtype and torch.equal(x.view(torch.uint8), y.view(torch.uint8))
            sums.add(x, y, wide=wide)
    return sums.result(same)


class _Norm:
    """An L2 norm that grows: `total` is the sum of squares over the square of `peak`."""

    def __init__(self) -> None:
        self.peak = 0.0
        self.total = 0.0

    def add(self, values: torch.Tensor, *, wide: bool) -> torch.Tensor:
        """Add values and return them divided by the peak."""
        peak = float(values.abs().max()) if wide else 1.0
        if math.isinf(peak):
            self.peak, self.total = math.inf, 1.0
            return torch.zeros_like(values)
        if peak > self.peak:
            shrink = self.peak / peak
            self.total *= shrink * shrink
            self.peak = peak
        if self.peak not in (0.0, 1.0):
            values = values / self.peak
        self.total += float(values @ values)
        return values


class _Sums:
    """What a distance is made of, of the blocks so far."""

    def __init__(self) -> None:
        self._a, self._b, self._difference = _Norm(), _Norm(), _Norm()
        self._dot = 0.0
        self._largest = 0.0
        self._finite = 0
        self._not_finite = 0

    def add(self, a: torch.Tensor, b: torch.Tensor, *, wide: bool) -> None:
        """Add a block of each, of at least one element."""
        x, y = a.to(torch.float64), b.to(torch.float64)
        finite = torch.isfinite(x) & torch.isfinite(y)
        count = int(finite.sum())
        if count < len(x):
            x, y = torch.where(finite, x, 0.0), torch.where(finite, y, 0.0)
        self._finite += count
        self._not_finite += len(x) - count
        gap = _gap(a, b, x, y)
        self._largest = max(self._largest, float(gap.abs().max()))
        self._difference.add(gap, wide=wide)
        before = self._a.peak, self._b.peak
        scaled_x, scaled_y = self._a.add(x, wide=wide), self._b.add(y, wide=wide)
        self._dot *= _ratio(before[0], self._a.peak) * _ratio(before[1], self._b.peak)
        self._dot += float(scaled_x @ scaled_y)

    def result(self, same_bits: bool) -> Distance:
        """Return the distance."""
        if not self._finite:
            return Distance(same_bits, None, None, None, self._not_finite)
        return Distance(same_bits, self._relative(), self._cosine(), self._largest, self._not_finite)

    def _relative(self) -> float:
        if not self._difference.total:
            return 0.0
        if not self._a.total:
            return math.inf
        return _ratio(self._difference.peak, self._a.peak) * math.sqrt(self._difference.total / self._a.total)

    def _cosine(self) -> float | None:
        if not self._a.total or not self._b.total:
            return None
        return max(-1.0, min(1.0, self._dot / (math.sqrt(self._a.total) * math.sqrt(self._b.total))))


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.reshape(-1)


def _gap(a: torch.Tensor, b: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the difference; that of 64-bit integers is exact where it is small, though float64 cannot hold them."""
    gap = x - y
    if a.dtype == b.dtype and a.dtype in _LONG:
        wrapped = (a.view(torch.int64) - b.view(torch.int64)).to(torch.float64)
        gap = torch.where(gap.abs() < _EXACT, wrapped, gap)
    return gap


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 1.0
