"""Quantizers ``fp16`` and ``bf16``: rounding to a 16-bit float. NaN and infinities stay what they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from tensordb.encoding.quantizers.base import Quantizer
from tensordb.encoding.quantizers.floats import Bytes, Floats, from_working, to_working
from tensordb.encoding.quantizers.sharing import Stretch
from tensordb.errors import UnsupportedFormatError


class Cast(Quantizer):
    """Rounds each value to `codes_dtype`; a value that overflows is an exception, values that vanish are refused."""

    def to_codes(self, values: Floats, near: Stretch) -> Bytes:
        """Return the rounded values."""
        return from_working(values, self.codes_dtype)

    def to_values(self, codes: Bytes, near: Stretch, out: Floats) -> None:
        """Write the values, which every wider float holds exactly."""
        np.copyto(out, to_working(codes, self.codes_dtype))

    def parameters(self) -> dict[str, Any]:
        """Return no parameters."""
        return {}

    def pack(self) -> bytes:
        """Return no bytes."""
        return b""

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Return the quantizer."""
        if data:
            raise UnsupportedFormatError(
                f"quantizer {cls.name} has parameters unknown to this release; use a newer release"
            )
        return cls()


@dataclass(frozen=True, slots=True)
class Fp16(Cast):
    """IEEE half precision: 11 significant bits, magnitudes from 6e-5 (6e-8 with fewer bits) to 65504."""

    id: ClassVar[int] = 1
    name: ClassVar[str] = "fp16"
    # Rounding loses at most 2**-11 of a normal value; twice that means that most of the values were not.
    relative_limit: ClassVar[float] = 2.0**-10

    @property
    def codes_dtype(self) -> str:
        """float16."""
        return "float16"


@dataclass(frozen=True, slots=True)
class Bf16(Cast):
    """Brain float: 8 significant bits, the magnitudes of float32."""

    id: ClassVar[int] = 2
    name: ClassVar[str] = "bf16"
    relative_limit: ClassVar[float] = 2.0**-7

    @property
    def codes_dtype(self) -> str:
        """bfloat16."""
        return "bfloat16"
