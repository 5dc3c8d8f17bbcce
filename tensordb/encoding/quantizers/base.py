"""What every quantizer is: a frozen configuration that turns a float tensor into narrower codes and parameters.

A quantizer itself only maps arrays elementwise; cutting tensors into ranges, finding parameters and measuring the
error is done here, the same way for all. Whatever cannot keep its promise (a value that overflows, NaN among scaled
values) is refused with NotQuantizableError; the pipeline then stores the tensor lossless and says so.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from tensordb.encoding.quantizers.floats import FLOAT_DTYPES, Bytes, Floats, from_working, to_working, working_dtype
from tensordb.encoding.quantizers.granularity import ParameterMap, PerTensor
from tensordb.encoding.workers import for_each
from tensordb.errors import InvalidInputError
from tensordb.model import MeasuredError, TensorSpec
from tensordb.tensors import byte_view, dtype_from_name, snapshot, spec_of, view_of

_RANGE = 1 << 16


class NotQuantizableError(InvalidInputError):
    """The quantizer cannot represent these values within its bound; store the tensor lossless."""


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """A quantized tensor.

    Attributes:
        codes: Same shape as the original, in the quantizer's code dtype.
        parameters: ``float32[total]`` each, in the order of the quantizer; empty for a cast.
        spec: The original's.
        page: Whether each row was quantized by itself.
        error: What was lost.
    """

    codes: torch.Tensor
    parameters: tuple[torch.Tensor, ...]
    spec: TensorSpec
    page: bool
    error: MeasuredError


class Quantizer(ABC):
    """Float tensor to codes and parameters. `id` is what a payload stores for it and never changes."""

    id: ClassVar[int]
    name: ClassVar[str]
    relative_limit: ClassVar[float] = math.inf
    """Largest relative L2 error of a record; more means that the values are outside the range of the codes."""

    @property
    @abstractmethod
    def codes_dtype(self) -> str:
        """Dtype of the codes by torch's name."""

    @property
    def code_bits(self) -> int:
        """Bits that a code needs."""
        return 8 * dtype_from_name(self.codes_dtype).itemsize

    @property
    def parameter_count(self) -> int:
        """How many parameter arrays there are."""
        return 0

    def parameter_map(self, spec: TensorSpec, page: bool) -> ParameterMap:
        """Return which parameter belongs to which element."""
        return ParameterMap.of(PerTensor(), *_records(spec, page))

    def fit(self, values: Floats, where: ParameterMap) -> tuple[NDArray[np.float32], ...]:
        """Return the parameter arrays for all values, ``float32[where.total]`` each.

        Raises:
            NotQuantizableError: if the values cannot be represented.
        """
        return ()

    @abstractmethod
    def to_codes(self, values: Floats, parameters: tuple[Floats, ...]) -> Bytes:
        """Return the bytes of the codes of ``values[records, n]``, with parameters that broadcast to them."""

    @abstractmethod
    def to_values(self, codes: Bytes, parameters: tuple[Floats, ...], shape: tuple[int, int], dtype: Any) -> Floats:
        """Return the values of codes, ``dtype[shape]``, with parameters that broadcast to them."""

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """Return the configuration as JSON values."""

    @abstractmethod
    def pack(self) -> bytes:
        """Return the configuration as a payload stores it."""

    @classmethod
    @abstractmethod
    def unpack(cls, data: bytes) -> Self:
        """Return the quantizer whose `pack` gave `data`."""

    def quantize(self, tensor: torch.Tensor, *, page: bool = False) -> Quantized:
        """Return the codes and parameters of a tensor of dtype float16, bfloat16, float32 or float64.

        Args:
            tensor: Any shape with at least one element.
            page: Treat each row of dimension 0 as a tensor of its own.

        Raises:
            NotQuantizableError: if the codes cannot represent the values (too large, too small, not finite).
            InvalidInputError: if the dtype or shape does not fit.
        """
        plain = snapshot(tensor)
        spec = spec_of(plain)
        if spec.dtype not in FLOAT_DTYPES or plain.numel() == 0:
            raise InvalidInputError(
                f"{self.name} quantizes float16, bfloat16, float32 and float64, not {spec}; store it lossless"
            )
        return _Quantization(self, plain, spec, page).run()

    def dequantize(self, quantized: Quantized) -> torch.Tensor:
        """Return the tensor that `quantized` stands for, in the original's dtype and shape."""
        codes = byte_view(quantized.codes)
        arrays = tuple(parameter.numpy() for parameter in quantized.parameters)
        where = self.parameter_map(quantized.spec, quantized.page)
        width = dtype_from_name(self.codes_dtype).itemsize
        parts = []
        for start, stop in _ranges(where):
            near = _near(where, arrays, start, stop)
            shape = where.shape_of(stop - start)
            parts.append(self.restore(codes[start * width : stop * width], near, shape, quantized.spec.dtype))
        return view_of(np.concatenate(parts), quantized.spec)

    def restore(self, codes: Bytes, parameters: tuple[Floats, ...], shape: tuple[int, int], dtype: str) -> Bytes:
        """Return the bytes, in the original dtype, of the values that codes stand for.

        Args:
            codes: Bytes of codes.
            parameters: Broadcastable to `shape`.
            shape: Records and elements of each.
            dtype: The original's.
        """
        # NaN, infinities and denormals are values like others here.
        with np.errstate(all="ignore"):
            return from_working(self.to_values(codes, parameters, shape, working_dtype(dtype)), dtype)


def _records(spec: TensorSpec, page: bool) -> tuple[tuple[int, ...], int]:
    """Return the shape that is quantized by itself and how often it is there."""
    return (spec.shape[1:], spec.shape[0]) if page else (spec.shape, 1)


def _ranges(where: ParameterMap) -> list[tuple[int, int]]:
    """Return element ranges to work on one by one; of whole records where there are several."""
    total = where.records * where.elements
    step = _RANGE if where.records == 1 else max(1, _RANGE // where.elements) * where.elements
    return [(start, min(start + step, total)) for start in range(0, total, step)]


def _near(where: ParameterMap, arrays: tuple[Floats, ...], start: int, stop: int) -> tuple[Floats, ...]:
    """Return the parameters of a range of elements, broadcastable to it."""
    return tuple(where.for_range(lambda a, b, array=array: array[a:b], start, stop) for array in arrays)  # type: ignore[misc]


class _Quantization:
    """One run of a quantizer over a tensor, range by range on all cores, measuring what each range lost."""

    def __init__(self, quantizer: Quantizer, tensor: torch.Tensor, spec: TensorSpec, page: bool) -> None:
        self._quantizer = quantizer
        self._spec = spec
        self._page = page
        self._where = quantizer.parameter_map(spec, page)
        with np.errstate(all="ignore"):  # a signalling NaN warns where it is merely converted
            self._values = to_working(byte_view(tensor), spec.dtype)
            self._arrays = quantizer.fit(self._values, self._where)
        self._width = dtype_from_name(quantizer.codes_dtype).itemsize
        self._units = _units(self._values, self._where)
        self._codes = np.empty(self._values.size * self._width, np.uint8)
        ranges = _ranges(self._where)
        self._ranges = ranges
        self._squares: list[tuple[Floats, Floats]] = [(np.zeros(1), np.zeros(1))] * len(ranges)
        self._largest = [0.0] * len(ranges)

    def run(self) -> Quantized:
        with np.errstate(all="ignore"):
            for_each(len(self._ranges), self._convert)
            error = self._measured()
        codes = view_of(self._codes, TensorSpec(self._quantizer.codes_dtype, self._spec.shape))
        return Quantized(codes, tuple(map(torch.from_numpy, self._arrays)), self._spec, self._page, error)

    def _convert(self, index: int) -> None:
        start, stop = self._ranges[index]
        where, quantizer = self._where, self._quantizer
        near = _near(where, self._arrays, start, stop)
        shape = where.shape_of(stop - start)
        values = self._values[start:stop].reshape(shape)
        with np.errstate(all="ignore"):
            codes = quantizer.to_codes(values, near)
            self._codes[start * self._width : stop * self._width] = codes
            restored = to_working(quantizer.restore(codes, near, shape, self._spec.dtype), self._spec.dtype)
            self._measure(index, values, restored.reshape(shape))

    def _measure(self, index: int, values: Floats, restored: Floats) -> None:
        difference = np.subtract(restored, values)
        # A sum is finite only if each of its terms is, and far cheaper than a test of each.
        if not math.isfinite(float(difference.sum())):
            finite = np.isfinite(values)
            if not np.isfinite(restored[finite]).all():
                raise NotQuantizableError(f"{self._quantizer.name} cannot hold values this large; stored lossless")
            difference = np.where(finite, difference, 0)
            values = np.where(finite, values, 0)
        self._largest[index] = float(max(difference.max(), -difference.min()))
        if values.dtype == np.float64:
            first = self._ranges[index][0] // self._where.elements
            units = self._units[first : first + len(values), None]
            difference, values = difference / units, values / units
        self._squares[index] = (_square_sums(difference), _square_sums(values))

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
