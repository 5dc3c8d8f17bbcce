"""Evenly spaced codes between the extremes of a tensor, of each channel, row or group: what int8 and int4 share.

Affine codes count steps up from the minimum, which is stored as it is: no zero point that could be clamped, so that
values far from zero keep their detail. Symmetric codes count steps from zero. The error of a value is at most half a
step, and what comes from rounding to the tensor's own dtype.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding import kernels
from tensordb.encoding.quantizers.floats import Bytes, Floats, rounded
from tensordb.encoding.quantizers.mapping import Fitted
from tensordb.encoding.quantizers.scaled import MODES, NO_MINIMA, Scaled, inverse_of
from tensordb.encoding.quantizers.sharing import ParameterMap, Stretch
from tensordb.errors import InvalidInputError

Mode = Literal["affine", "symmetric"]


@lru_cache
def whole_numbers(offset: int, signed: bool) -> NDArray[np.float32]:
    """Return the number that each byte stands for, less `offset`; bytes are signed or not."""
    numbers = np.arange(256, dtype=np.uint8).view(np.int8 if signed else np.uint8).astype(np.float32) - offset
    numbers.flags.writeable = False
    return numbers


class Levels(Scaled):
    """Codes that count steps."""

    affine_steps: ClassVar[int]
    """Steps between minimum and maximum; affine codes run from 0 to this."""
    mode: Mode

    def _check(self) -> None:
        super()._check()
        if self.mode not in MODES:
            raise InvalidInputError(f"{self.name} has no mode {self.mode!r}; use one of: {', '.join(MODES)}")

    @property
    def parameter_count(self) -> int:
        """Scales; and minima for affine codes."""
        return 2 if self.mode == "affine" else 1

    @property
    def code_range(self) -> tuple[int, int, int]:
        """Lowest and highest step, and what is added to a step for its code."""
        return 0, self.affine_steps, 0

    def levels(self) -> NDArray[np.float32]:
        """Return the number of steps."""
        low, _, offset = self.code_range
        return whole_numbers(offset, low < 0 and not offset)

    def fit(self, values: Floats, where: ParameterMap, dtype: str) -> Fitted:
        """Return ``(scales, minima)``, or ``(scales,)`` for symmetric codes."""
        low, high = self._extremes(values, where)
        if self.mode == "symmetric":
            return Fitted((self._symmetric(low, high),))
        # Rounded, the minimum must not lie above a value, which would have no code.
        minima = rounded(low, self.scale_dtype, up=False)
        return Fitted((self._steps(high - minima, self.affine_steps), minima))

    def _symmetric(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float32]:
        raise NotImplementedError

    def to_codes(self, values: Floats, near: Stretch) -> Bytes:
        """Return the nearest code of each value."""
        return round_to_codes(values, near, self.code_range)

    def parameters(self) -> dict[str, Any]:
        """Return granularity, mode, and the dtype of the scales unless it is float32."""
        return {**super().parameters(), "mode": self.mode}

    def pack(self) -> bytes:
        """Return mode, granularity, and a 1 for bfloat16 scales."""
        return self._packed(self.mode)

    @classmethod
    def _unpacked(cls, data: bytes) -> dict[str, Any]:
        known = data[:1] == b"\0"
        return super()._unpacked(b"\1" + data[1:] if known else data) | {"mode": "affine" if known else "symmetric"}


def round_to_codes(values: Floats, near: Stretch, code_range: tuple[int, int, int]) -> Bytes:
    """Return ``clip(round((value - minimum) / scale), low, high) + offset`` as bytes, ties to even."""
    low, high, offset = code_range
    loops = kernels.ready_to_scale(values.nbytes) if near.where.inner > 1 and values.flags.aligned else None
    if loops is not None:
        scales, minima = near.parameters if len(near.parameters) > 1 else (near.parameters[0], NO_MINIMA)
        out = np.empty(values.size, np.uint8)
        loops.rounded[values.dtype.name](values, scales, minima, low, high, offset, *near.places, out)
        return out
    spread = near.spread()
    shaped = values.reshape(near.shape)
    steps = np.subtract(shaped, spread[1], dtype=values.dtype) if len(spread) > 1 else shaped
    steps = steps * inverse_of(spread[0], values.dtype)
    np.clip(np.rint(steps, out=steps), low, high, out=steps)
    return (steps.astype(np.int16) + np.int16(offset)).astype(np.uint8).reshape(-1)
