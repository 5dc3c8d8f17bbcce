"""Quantizer ``uniform``: whole steps from zero, an error of at most a stated bound, codes for an entropy coder.

A code is the value in steps, -127 to 127, so that most codes are small numbers that a Huffman coder stores in few bits.
Values beyond, and values that err by more than the bound once they are rounded to the tensor's own dtype, are
exceptions, stored exactly. So the bound holds for every element.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from tensordb.encoding.quantizers.floats import Bytes, Floats, rounded
from tensordb.encoding.quantizers.granularity import Granularity, PerRow, PerTensor, unpack_granularity
from tensordb.encoding.quantizers.levels import round_to_codes, whole_numbers
from tensordb.encoding.quantizers.mapping import Fitted
from tensordb.encoding.quantizers.rates import step_for_bits
from tensordb.encoding.quantizers.scaled import (
    SCALE_DTYPES,
    SMALLEST_STEP,
    Scaled,
    ScaleDtype,
    magnitudes,
)
from tensordb.encoding.quantizers.sharing import ParameterMap, Stretch
from tensordb.errors import FormatError, InvalidInputError, UnsupportedFormatError
from tensordb.tensors import dtype_from_name

HIGHEST = 127
_AIMS = ("step", "max_error", "relative_max_error", "target_bits")
_RANGES = {"step": (1e-3, 16.0), "max_error": (0.0, 1e38), "relative_max_error": (0.0, 1.0), "target_bits": (1.5, 8.0)}
_PACKED = struct.Struct("<BBd")
# Room below the bound for the rounding of the step, of its inverse and of their products: a few parts in 2^16.
_ROOM = 1 - 2**-10
_USUAL = 3.0
"""Values of up to so many RMS keep their bound in spite of the rounding to their own dtype."""


@dataclass(frozen=True, slots=True)
class Uniform(Scaled):
    """Uniform codes with a bounded error. Exactly one of `step`, `max_error` and `target_bits` is given.

    Attributes:
        step: As a fraction of the root mean square of the elements that share a scale, 0.001 to 16. The error is at
            most half a step. 0.06 gives about 35 dB and 6.3 bits on normally distributed values, 0.2 25 dB and 4.5.
        max_error: Largest error of an element, in the tensor's units.
        relative: `max_error` is a fraction of the largest magnitude of the elements that share a scale.
        target_bits: Bits of an element, with everything that is stored for it, 1.5 to 8; the step is found from the
            tensor's values, in a page from all of its records.
        granularity: Which elements share a scale: rows by default; all for an absolute `max_error`.
        scale_dtype: ``"float32"`` or ``"bfloat16"``.
    """

    id: ClassVar[int] = 8
    name: ClassVar[str] = "uniform"
    step: float | None = None
    max_error: float | None = None
    relative: bool = False
    target_bits: float | None = None
    granularity: Granularity = field(default_factory=PerRow)
    scale_dtype: ScaleDtype = "float32"

    def __post_init__(self) -> None:
        self._check()
        given = [name for name in ("step", "max_error", "target_bits") if getattr(self, name) is not None]
        if len(given) != 1 or not isinstance(self.relative, bool) or (self.relative and given != ["max_error"]):
            raise InvalidInputError(
                "uniform needs exactly one of step, max_error (with relative=True or False) and target_bits, "
                f"got {', '.join(given) or 'none'} and relative={self.relative!r}"
            )
        _check_amount(self._aim, getattr(self, given[0]))
        object.__setattr__(self, given[0], float(getattr(self, given[0])))
        if self._aim == "max_error":
            if not isinstance(self.granularity, PerRow | PerTensor):
                raise InvalidInputError("an absolute max_error is one for all elements; leave the granularity out")
            object.__setattr__(self, "granularity", PerTensor())

    @property
    def _aim(self) -> str:
        if self.step is not None:
            return "step"
        if self.target_bits is not None:
            return "target_bits"
        return "relative_max_error" if self.relative else "max_error"

    @property
    def _amount(self) -> float:
        return next(each for each in (self.step, self.max_error, self.target_bits) if each is not None)

    @property
    def codes_dtype(self) -> str:
        """int8."""
        return "int8"

    def levels(self) -> NDArray[np.float32]:
        """Return the number of steps."""
        return whole_numbers(0, True)

    def fit(self, values: Floats, where: ParameterMap, dtype: str) -> Fitted:
        """Return the steps, and half of what they could have been as the bounds."""
        low, high = self._extremes(values, where)
        spread = self._rms(values, where)
        bounds = self._bounds(values, where, dtype, spread, magnitudes(low, high))
        # Half of the distance between two neighbours of the dtype, where most of the largest values are.
        grain = _USUAL * spread * _epsilon(dtype) / 2
        steps = np.maximum(2 * (bounds - grain), bounds) * _ROOM
        scales = rounded(np.minimum(steps, 2.0**120), self.scale_dtype, up=False)
        # Equal values are one step, and exact, where the dtype of the scales holds them.
        one = rounded(np.abs(low), self.scale_dtype, up=False)
        scales = np.where((low == high) & (one == np.abs(low)), one, scales)
        # What has no step is zero, and exact where that is not near enough.
        return Fitted((np.where(scales < SMALLEST_STEP, np.float32(0), scales),), bounds)

    def _rms(self, values: Floats, where: ParameterMap) -> NDArray[np.float64]:
        count: NDArray[np.float64] = np.array(values.size / where.total)
        if where.elements % (where.inner * where.count):
            sizes = np.diff(np.append(np.arange(0, where.elements, where.inner), where.elements))
            count = np.tile(sizes, where.records).astype(np.float64)
        if not max(values.max(), -values.min()) <= self.largest:
            usable = np.abs(values) <= self.largest
            count = where.square_sums(usable.astype(np.float32)).clip(1)
            values = np.where(usable, values, values.dtype.type(0))
        return np.asarray(np.sqrt(where.square_sums(values) / count))

    def _bounds(
        self, values: Floats, where: ParameterMap, dtype: str, rms: NDArray[np.float64], largest: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        match self._aim:
            case "max_error":
                return np.full(where.total, self._amount)
            case "relative_max_error":
                return self._amount * largest
            case "step":
                return self._amount / 2 * rms
            case _:
                sizes = dtype_from_name(dtype).itemsize, dtype_from_name(self.scale_dtype).itemsize
                return step_for_bits(self._amount, values, where, rms, sizes) / 2 * rms

    def to_codes(self, values: Floats, near: Stretch) -> Bytes:
        """Return the nearest number of steps."""
        return round_to_codes(values, near, (-HIGHEST, HIGHEST, 0))

    def parameters(self) -> dict[str, Any]:
        """Return what was aimed at, granularity, and the dtype of the scales unless it is float32."""
        relative = {"relative": True} if self.relative else {}
        return {self._aim.removeprefix("relative_"): self._amount, **relative, **Scaled.parameters(self)}

    def pack(self) -> bytes:
        """Return 1, granularity, dtype of the scales, and what was aimed at (a number and float64)."""
        plain = Scaled._packed(self, "symmetric")[:6]
        return plain + _PACKED.pack(SCALE_DTYPES.index(self.scale_dtype), _AIMS.index(self._aim), self._amount)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Return the quantizer that `pack` describes."""
        if len(data) != 6 + _PACKED.size or data[0] != 1 or data[6] > 1 or data[7] >= len(_AIMS):
            raise UnsupportedFormatError(
                f"uniform has parameters {data.hex()}, unknown to this release; use a newer release"
            )
        scale, aim, amount = _PACKED.unpack(data[6:])
        name = _AIMS[aim]
        what = {name.removeprefix("relative_"): amount, "relative": name == "relative_max_error"}
        try:
            return cls(granularity=unpack_granularity(data[1:6]), scale_dtype=SCALE_DTYPES[scale], **what)  # type: ignore[arg-type]
        except InvalidInputError as error:
            raise FormatError(f"payload has impossible quantizer parameters: {error}") from error


def _check_amount(aim: str, amount: Any) -> None:
    low, high = _RANGES[aim]
    number = isinstance(amount, int | float) and not isinstance(amount, bool)
    if not number or not low <= amount <= high or not amount:
        raise InvalidInputError(f"uniform cannot use {aim} {amount!r}; use a number from {low:g} to {high:g}")


def _epsilon(dtype: str) -> float:
    return float(torch.finfo(dtype_from_name(dtype)).eps)
