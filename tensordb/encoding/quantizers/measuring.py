"""One run of a quantizer over a tensor: range by range on all cores, setting exceptions aside, measuring what was lost.

What comes out of the codes is compared with the original in the original's dtype, as a reader will see it. An element
that has no code, that overflows on the way back, or that errs by more than the quantizer's bound is an exception.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tensordb.encoding import kernels
from tensordb.encoding.quantizers.exceptions import WORDS, Exceptions, most_exceptions, position_dtype
from tensordb.encoding.quantizers.floats import Floats, from_working, to_working
from tensordb.encoding.quantizers.mapping import CodeMap, NotQuantizableError
from tensordb.encoding.quantizers.outliers import outliers
from tensordb.encoding.quantizers.sharing import ParameterMap, Stretch
from tensordb.encoding.workers import for_each
from tensordb.model import MeasuredError, TensorSpec
from tensordb.tensors import byte_view, dtype_from_name, nbytes_of, view_of

_RANGE = 1 << 16
_COST_OF_EXCEPTIONS = 64
"""Bytes of table and padding."""


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """A quantized tensor.

    Attributes:
        codes: Same shape as the original, in the quantizer's code dtype.
        parameters: ``[total]`` each, float32 or bfloat16, in the order of the quantizer; empty for a cast.
        spec: The original's.
        page: Whether each row was quantized by itself.
        error: What was lost.
        exceptions: Elements that are kept exactly, or None; their codes mean nothing.
    """

    codes: torch.Tensor
    parameters: tuple[torch.Tensor, ...]
    spec: TensorSpec
    page: bool
    error: MeasuredError
    exceptions: Exceptions | None = None


def ranges_of(where: ParameterMap) -> list[tuple[int, int]]:
    """Return element ranges to work on one by one; of whole records where there are several."""
    total = where.records * where.elements
    step = _RANGE if where.records == 1 else max(1, _RANGE // where.elements) * where.elements
    return [(start, min(start + step, total)) for start in range(0, total, step)]


class Quantization:
    """A run of `quantizer` over `tensor`, which is plain and contiguous."""

    def __init__(self, quantizer: CodeMap, tensor: torch.Tensor, spec: TensorSpec, page: bool) -> None:
        self._quantizer = quantizer
        self._spec = spec
        self._page = page
        self._bytes = byte_view(tensor)
        self._where = quantizer.parameter_map(spec, page)
        # A cast's codes hold NaN and infinities by themselves.
        self._casts = quantizer.largest == math.inf
        with np.errstate(all="ignore"):  # a signalling NaN warns where it is merely converted
            self._values = to_working(self._bytes, spec.dtype)
            self._aside = None if self._casts else outliers(self._values, self._where, quantizer.largest)
            if self._aside is not None:
                self._values = self._values.copy()
                self._values[self._aside] = 0
            self._fitted = quantizer.fit(self._values, self._where, spec.dtype)
        self._width = dtype_from_name(quantizer.codes_dtype).itemsize
        self._units = _units(self._values, self._where)
        self._codes = np.empty(self._values.size * self._width, np.uint8)
        self._ranges = ranges_of(self._where)
        self._squares: list[tuple[Floats, Floats]] = [(np.zeros(1), np.zeros(1))] * len(self._ranges)
        self._largest = [0.0] * len(self._ranges)
        self._positions: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(self._ranges)

    def run(self) -> Quantized:
        """Return the codes with all that belongs to them.

        Raises:
            NotQuantizableError: if too many elements are exceptions, or too much is lost.
        """
        with np.errstate(all="ignore"):
            for_each(len(self._ranges), self._convert)
            exceptions = self._exceptions()
            error = self._measured()
        codes = view_of(self._codes, TensorSpec(self._quantizer.codes_dtype, self._spec.shape))
        dtype = self._quantizer.parameter_dtype
        arrays = [from_working(array, dtype) for array in self._fitted.parameters]
        parameters = tuple(view_of(array, TensorSpec(dtype, (self._where.total,))) for array in arrays)
        return Quantized(codes, parameters, self._spec, self._page, error, exceptions)

    def _convert(self, index: int) -> None:
        start, stop = self._ranges[index]
        quantizer = self._quantizer
        near = self._near(start, stop, *self._fitted.parameters)
        values = self._values[start:stop]
        with np.errstate(all="ignore"):
            outside = self._outside(values)
            coded = values if outside is None or self._casts else np.where(outside, values.dtype.type(0), values)
            codes = quantizer.to_codes(coded, near)
            self._codes[start * self._width : stop * self._width] = codes
            data = np.empty(nbytes_of(TensorSpec(self._spec.dtype, (stop - start,))), np.uint8)
            quantizer.restore(codes, near, self._spec.dtype, data)
            self._measure(index, values, to_working(data, self._spec.dtype), outside)

    def _outside(self, values: Floats) -> NDArray[np.bool_] | None:
        """Return which values are not finite, or larger than any code; None if there are none."""
        limit = min(self._quantizer.largest, float(np.finfo(values.dtype).max))
        # Not-a-number compares false; the largest magnitude of all tells whether any value needs a look.
        if max(values.max(), -values.min()) <= limit:
            return None
        return np.asarray(~(np.abs(values) <= limit))

    def _near(self, start: int, stop: int, *arrays: Floats) -> Stretch:
        return self._where.stretch(start, stop, *(lambda a, b, array=array: array[a:b] for array in arrays))

    def _measure(self, index: int, values: Floats, restored: Floats, outside: NDArray[np.bool_] | None) -> None:
        """Note what a range lost, and which of its elements are exceptions."""
        difference = np.subtract(restored, values)
        bad = self._beyond(index, difference)
        # A sum is finite only if each of its terms is, and far cheaper than a test of each.
        if outside is not None or not math.isfinite(float(difference.sum())):
            odd = ~np.isfinite(difference)
            if outside is not None:
                odd = odd & ~outside if self._casts else odd | outside
            bad = odd if bad is None else odd | bad
        if bad is not None and bad.any():
            self._positions[index] = np.flatnonzero(bad) + self._ranges[index][0]
            difference = np.where(bad, difference.dtype.type(0), difference)
        if outside is not None:
            difference = np.where(outside, difference.dtype.type(0), difference)
            values = np.where(outside, values.dtype.type(0), values)
        self._largest[index] = float(max(difference.max(), -difference.min()))
        shape = self._near(*self._ranges[index]).shape
        difference, values = difference.reshape(shape), values.reshape(shape)
        if values.dtype == np.float64:
            first = self._ranges[index][0] // self._where.elements
            units = self._units[first : first + len(values), None]
            difference, values = difference / units, values / units
        self._squares[index] = (_square_sums(difference), _square_sums(values))

    def _beyond(self, index: int, difference: Floats) -> NDArray[np.bool_] | None:
        """Return which elements err by more than their bound."""
        if self._fitted.bounds is None:
            return None
        near = self._near(*self._ranges[index], self._fitted.bounds)
        loops = kernels.ready_to_scale(difference.nbytes)
        if loops is None:
            return np.asarray(~(abs(difference.reshape(near.shape)) <= near.spread()[0])).reshape(-1)
        out = np.empty(difference.size, np.bool_)
        loops.beyond[difference.dtype.name](difference, near.parameters[0], *near.places, out)
        return out

    def _exceptions(self) -> Exceptions | None:
        positions = np.concatenate(self._positions)
        if self._aside is not None:
            positions = np.union1d(positions, self._aside)
        if not len(positions):
            return None
        total, most = self._values.size, most_exceptions(self._values.size)
        if len(positions) > most:
            raise NotQuantizableError(
                f"{self._quantizer.name} cannot keep {len(positions)} of {total} values within its bounds, "
                f"at most {most} can be exceptions; stored lossless"
            )
        kept = positions.astype(position_dtype(total))
        words = self._bytes.view(WORDS[self._bytes.nbytes // total])
        cost = kept.nbytes + len(kept) * words.itemsize + _COST_OF_EXCEPTIONS
        if total * self._quantizer.code_bits // 8 + cost >= self._bytes.nbytes:
            raise NotQuantizableError(
                f"{self._quantizer.name} cannot save anything with {len(kept)} exceptions among {total} values; "
                "stored lossless"
            )
        return Exceptions(kept, words[positions])

    def _measured(self) -> MeasuredError:
        lost = np.concatenate([squares for squares, _ in self._squares])
        size = np.concatenate([squares for _, squares in self._squares])
        if self._where.records == 1:
            lost, size = lost.sum(keepdims=True), size.sum(keepdims=True)
        if bool((lost > size * self._quantizer.relative_limit**2).any()):
            raise NotQuantizableError(f"{self._quantizer.name} cannot hold values this small; stored lossless")
        weights = (self._units / self._units.max()) ** 2
        lost, size = lost * weights, size * weights
        relative = math.sqrt(lost.sum() / size.sum()) if lost.sum() else 0.0
        return MeasuredError(relative, max(self._largest))


def _units(values: Floats, where: ParameterMap) -> NDArray[np.float64]:
    """Return the magnitude by which each record is divided before squaring, so that float64 does not underflow."""
    units = np.ones(where.records)
    if values.dtype == np.float64:
        with np.errstate(invalid="ignore"):
            sizes = np.abs(values).reshape(where.records, -1)
        sizes[~np.isfinite(sizes)] = 0
        largest = sizes.max(axis=1)
        units[largest > 0] = largest[largest > 0]
    return units


def _square_sums(values: Floats) -> Floats:
    return np.asarray(np.einsum("ij,ij->i", values, values, dtype=np.float64))
