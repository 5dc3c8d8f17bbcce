"""Quantizers ``fp8_e4m3`` and ``fp8_e5m2``: 8-bit floats of a scaled tensor, channel, row or group.

The scale maps the largest magnitude to the largest number of the format (448 and 57344), so that nothing saturates.
Formats: Micikevicius et al., "FP8 Formats for Deep Learning", 2022, arXiv 2209.05433.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from tensordb.encoding.quantizers.floats import Bytes, Floats
from tensordb.encoding.quantizers.granularity import Granularity, PerTensor
from tensordb.encoding.quantizers.mapping import Fitted
from tensordb.encoding.quantizers.scaled import Scaled, ScaleDtype, inverse_of, magnitudes
from tensordb.encoding.quantizers.sharing import ParameterMap, Stretch
from tensordb.tensors import byte_view, dtype_from_name


@lru_cache
def _numbers(dtype: str) -> NDArray[np.float32]:
    """Return the number that each byte stands for."""
    return np.array(torch.arange(256, dtype=torch.uint8).view(dtype_from_name(dtype)).to(torch.float32).tolist(), "f4")


class Fp8(Scaled):
    """A scaled 8-bit float."""

    largest_number: ClassVar[float]

    def levels(self) -> NDArray[np.float32]:
        """Return the numbers of the format."""
        return _numbers(self.codes_dtype)

    def fit(self, values: Floats, where: ParameterMap, dtype: str) -> Fitted:
        """Return the scales."""
        return Fitted((self._steps(magnitudes(*self._extremes(values, where)), self.largest_number),))

    def to_codes(self, values: Floats, near: Stretch) -> Bytes:
        """Return the nearest numbers of the format, ties to even."""
        scaled = values.reshape(near.shape) * inverse_of(near.spread()[0], values.dtype)
        # Rounding can leave the largest a hair beyond, which torch would turn into NaN or infinity.
        np.clip(scaled, -self.largest_number, self.largest_number, out=scaled)
        return byte_view(torch.from_numpy(scaled.reshape(-1)).to(dtype_from_name(self.codes_dtype)))


@dataclass(frozen=True, slots=True)
class Fp8E4m3(Fp8):
    """4 exponent and 3 mantissa bits.

    Attributes:
        granularity: Which elements share a scale.
        scale_dtype: ``"float32"`` or ``"bfloat16"``.
    """

    id: ClassVar[int] = 6
    name: ClassVar[str] = "fp8_e4m3"
    largest_number: ClassVar[float] = 448.0
    granularity: Granularity = field(default_factory=PerTensor)
    scale_dtype: ScaleDtype = "float32"

    def __post_init__(self) -> None:
        self._check()

    @property
    def codes_dtype(self) -> str:
        """float8_e4m3fn."""
        return "float8_e4m3fn"


@dataclass(frozen=True, slots=True)
class Fp8E5m2(Fp8):
    """5 exponent and 2 mantissa bits.

    Attributes:
        granularity: Which elements share a scale.
        scale_dtype: ``"float32"`` or ``"bfloat16"``.
    """

    id: ClassVar[int] = 7
    name: ClassVar[str] = "fp8_e5m2"
    largest_number: ClassVar[float] = 57344.0
    granularity: Granularity = field(default_factory=PerTensor)
    scale_dtype: ScaleDtype = "float32"

    def __post_init__(self) -> None:
        self._check()

    @property
    def codes_dtype(self) -> str:
        """float8_e5m2."""
        return "float8_e5m2"
