"""Quantizer ``int8``: 256 affine or 255 symmetric levels, a byte each.

The error of a value is at most half a step: range / 510 affine, largest magnitude / 254 symmetric.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding.quantizers.granularity import Granularity, PerTensor
from tensordb.encoding.quantizers.levels import Levels, Mode
from tensordb.encoding.quantizers.scaled import ScaleDtype, magnitudes


@dataclass(frozen=True, slots=True)
class Int8(Levels):
    """Uniform 8-bit codes.

    Attributes:
        granularity: Which elements share a scale.
        mode: ``"affine"``: uint8 codes, value = minimum + code * scale. ``"symmetric"``: int8 codes from -127 to 127,
            value = code * scale.
        scale_dtype: Of scales and minima: ``"float32"`` or ``"bfloat16"``.
    """

    id: ClassVar[int] = 3
    name: ClassVar[str] = "int8"
    affine_steps: ClassVar[int] = 255
    granularity: Granularity = field(default_factory=PerTensor)
    mode: Mode = "affine"
    scale_dtype: ScaleDtype = "float32"

    def __post_init__(self) -> None:
        self._check()

    @property
    def codes_dtype(self) -> str:
        """uint8 for affine codes, int8 for symmetric ones."""
        return "uint8" if self.mode == "affine" else "int8"

    @property
    def code_range(self) -> tuple[int, int, int]:
        """Lowest and highest step, and what is added to a step for its code."""
        return (0, 255, 0) if self.mode == "affine" else (-127, 127, 0)

    def _symmetric(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float32]:
        return self._steps(magnitudes(low, high), 127)
