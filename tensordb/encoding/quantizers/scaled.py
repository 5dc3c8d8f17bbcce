"""What quantizers with scales share: value = level of the code × scale (+ minimum), scales in float32 or bfloat16.

A subclass says which 256 levels its bytes stand for, how it fits scales, and how it finds codes.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding import kernels
from tensordb.encoding.quantizers.base import Quantizer
from tensordb.encoding.quantizers.floats import Bytes, Floats, rounded
from tensordb.encoding.quantizers.granularity import (
    GRANULARITIES,
    Granularity,
    granularity_to_dict,
    pack_granularity,
    unpack_granularity,
)
from tensordb.encoding.quantizers.mapping import NotQuantizableError, records_of
from tensordb.encoding.quantizers.sharing import ParameterMap, Stretch
from tensordb.errors import InvalidInputError, UnsupportedFormatError
from tensordb.model import TensorSpec

ScaleDtype = Literal["float32", "bfloat16"]
SCALE_DTYPES = ("float32", "bfloat16")
MODES = ("affine", "symmetric")
SMALLEST_STEP = float(np.finfo(np.float32).tiny)
NO_MINIMA = np.empty(0, np.float32)
FULL = 2.0**126
"""Magnitudes beyond this are exceptions, so that a range from minimum to maximum fits into float32."""


class Scaled(Quantizer):
    """A quantizer with a scale for each tensor, channel, row or group."""

    largest: ClassVar[float] = FULL
    granularity: Granularity
    scale_dtype: ScaleDtype

    def _check(self) -> None:
        if not isinstance(self.granularity, tuple(GRANULARITIES.values())):
            raise InvalidInputError(
                f"{self.name} has no granularity {self.granularity!r}; "
                "use PerTensor(), PerRow(), PerChannel(axis) or PerGroup(size)"
            )
        if self.scale_dtype not in SCALE_DTYPES:
            raise InvalidInputError(
                f"{self.name} has no scale_dtype {self.scale_dtype!r}; use one of: {', '.join(SCALE_DTYPES)}"
            )

    @property
    def parameter_count(self) -> int:
        """Scales alone."""
        return 1

    @property
    def parameter_dtype(self) -> str:
        """That of the scales."""
        return self.scale_dtype

    def parameter_map(self, spec: TensorSpec, page: bool) -> ParameterMap:
        """Return the map of the granularity."""
        return ParameterMap.of(self.granularity, *records_of(spec, page))

    def levels(self) -> NDArray[np.float32]:
        """Return what each byte stands for before it is scaled: ``float32[256]``."""
        raise NotImplementedError

    def to_values(self, codes: Bytes, near: Stretch, out: Floats) -> None:
        """Write level × scale (+ minimum), each operation rounded to the working precision."""
        levels = self.levels().astype(out.dtype)
        scales, minima = near.parameters if len(near.parameters) > 1 else (near.parameters[0], NO_MINIMA)
        loops = kernels.ready_to_scale(out.nbytes)
        if loops is not None and _lies_right(codes, out, scales, minima):
            loops.restore[out.dtype.name](codes, levels, scales, minima, *near.places, out)
            return
        values = out.reshape(near.shape)
        spread = near.spread()
        np.take(levels, codes.reshape(near.shape), out=values, mode="clip")
        values *= spread[0]
        if len(spread) > 1:
            values += spread[1]

    def parameters(self) -> dict[str, Any]:
        """Return granularity, and the dtype of the scales unless it is float32."""
        plain = granularity_to_dict(self.granularity)
        return plain if self.scale_dtype == "float32" else {**plain, "scale_dtype": self.scale_dtype}

    def pack(self) -> bytes:
        """Return 1, granularity, and a 1 for bfloat16 scales."""
        return self._packed("symmetric")

    def _packed(self, mode: str) -> bytes:
        wide = self.scale_dtype == "float32"
        return bytes((MODES.index(mode),)) + pack_granularity(self.granularity) + (b"" if wide else b"\1")

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Return the quantizer that `pack` describes."""
        return cls(**cls._unpacked(data))

    @classmethod
    def _unpacked(cls, data: bytes) -> dict[str, Any]:
        """Return granularity and dtype of the scales."""
        if len(data) not in (6, 7) or data[0] != 1 or data[6:] not in (b"", b"\1"):
            raise UnsupportedFormatError(
                f"{cls.name} has parameters {data.hex()}, unknown to this release; use a newer release"
            )
        return {"granularity": unpack_granularity(data[1:6]), "scale_dtype": SCALE_DTYPES[len(data) - 6]}

    def _extremes(self, values: Floats, where: ParameterMap) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return lowest and highest value of each parameter's elements, leaving out those that have no code."""
        low = where.reduce(values, np.minimum).astype(np.float64)
        high = where.reduce(values, np.maximum).astype(np.float64)
        with np.errstate(invalid="ignore"):
            if (np.maximum(-low, high) <= self.largest).all():
                return low, high
            usable = np.abs(values) <= self.largest
        far = values.dtype.type(np.inf)
        low = where.reduce(np.where(usable, values, far), np.minimum).astype(np.float64)
        high = where.reduce(np.where(usable, values, -far), np.maximum).astype(np.float64)
        return np.where(low > high, 0, low), np.where(low > high, 0, high)

    def _steps(self, ranges: NDArray[np.float64], levels: float) -> NDArray[np.float32]:
        """Return the step that covers each range with this many levels; in bfloat16 rounded up, so that none clips."""
        steps = ranges / levels
        if ((steps > 0) & (steps < SMALLEST_STEP)).any():
            raise NotQuantizableError(f"{self.name} cannot divide a range this small; stored lossless")
        return steps.astype(np.float32) if self.scale_dtype == "float32" else rounded(steps, "bfloat16", up=True)


def inverse_of(scales: Floats, dtype: Any) -> Floats:
    """Return 1 / scale in this dtype; 0 for a scale of 0."""
    wide = scales.astype(dtype)
    return np.asarray(np.divide(1, wide, out=np.zeros_like(wide), where=wide != 0))


def magnitudes(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest magnitude of each range."""
    return np.maximum(np.abs(low), np.abs(high))


def _lies_right(*arrays: Floats) -> bool:
    return all(array.flags.aligned and array.flags.c_contiguous for array in arrays)
