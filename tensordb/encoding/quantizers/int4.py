"""Quantizer ``int4``: 16 levels, affine or symmetric.

The symmetric levels are -8 to 7 steps. The scale is negative where the largest magnitude is positive, so that the
level without a counterpart serves the longer side; nothing is clipped. The error of a value is at most half a step:
range / 30 affine; symmetric between largest magnitude / 16 and / 14.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding.quantizers.granularity import Granularity, PerGroup
from tensordb.encoding.quantizers.levels import Levels, Mode
from tensordb.encoding.quantizers.scaled import ScaleDtype


@dataclass(frozen=True, slots=True)
class Int4(Levels):
    """Uniform 4-bit codes, one a byte until they are packed.

    Attributes:
        granularity: Which elements share a scale; groups of 64 by default.
        mode: ``"affine"``: codes 0 to 15, value = minimum + code * scale. ``"symmetric"``: value = (code - 8) * scale.
        scale_dtype: Of scales and minima: ``"float32"`` or ``"bfloat16"``.
    """

    id: ClassVar[int] = 4
    name: ClassVar[str] = "int4"
    affine_steps: ClassVar[int] = 15
    granularity: Granularity = field(default_factory=lambda: PerGroup(64))
    mode: Mode = "affine"
    scale_dtype: ScaleDtype = "float32"

    def __post_init__(self) -> None:
        self._check()

    @property
    def codes_dtype(self) -> str:
        """uint8, of which 16 values are used."""
        return "uint8"

    @property
    def code_bits(self) -> int:
        """Four."""
        return 4

    @property
    def code_range(self) -> tuple[int, int, int]:
        """Lowest and highest step, and what is added to a step for its code."""
        return (0, 15, 0) if self.mode == "affine" else (-8, 7, 8)

    def _symmetric(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float32]:
        below, above = np.maximum(-low, 0), np.maximum(high, 0)
        upright, turned = np.maximum(below / 8, above / 7), np.maximum(below / 7, above / 8)
        steps = self._steps(np.minimum(upright, turned), 1)
        return np.where(upright <= turned, steps, -steps)
