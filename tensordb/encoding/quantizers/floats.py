"""Floating-point bytes as NumPy arrays to calculate with, and back. NumPy has no bfloat16: done on bits here."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[Any]

FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")


def working_dtype(dtype: str) -> type[np.floating[Any]]:
    """Return what values of this dtype are calculated in: float64 for float64, float32 for the others."""
    return np.float64 if dtype == "float64" else np.float32


def to_working(data: Bytes, dtype: str) -> Floats:
    """Return the values in ``data`` in the working precision; float32 and float64 without a copy."""
    if dtype == "bfloat16":
        wide = data.view(np.uint16).astype(np.uint32)
        wide <<= np.uint32(16)
        return wide.view(np.float32)
    if dtype == "float16":
        return data.view(np.float16).astype(np.float32)
    return data.view(working_dtype(dtype))


def from_working(values: Floats, dtype: str) -> Bytes:
    """Return the bytes of `values` in this dtype, rounded to the nearest, ties to even; too large becomes infinite."""
    if dtype == "bfloat16":
        return _bfloat16(values)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        rounded = np.ascontiguousarray(values, np.float16 if dtype == "float16" else working_dtype(dtype))
    return rounded.reshape(-1).view(np.uint8)


def _bfloat16(values: Floats) -> Bytes:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        single = np.ascontiguousarray(values, np.float32).reshape(-1)
    bits = single.view(np.uint32)
    # Adding just under half of the dropped part, or half where the kept part is odd, carries as rounding does.
    rounded = (bits >> np.uint32(16)) & np.uint32(1)
    rounded += bits
    rounded += np.uint32(0x7FFF)
    rounded >>= np.uint32(16)
    nans = np.isnan(single)
    if nans.any():
        # The carry could turn a NaN into infinity or zero; keep its sign and leading bits, and make it quiet.
        rounded[nans] = (bits[nans] >> np.uint32(16)) | np.uint32(0x40)
    return rounded.astype(np.uint16).view(np.uint8)


def rounded(values: NDArray[np.float64], dtype: str, *, up: bool) -> NDArray[np.float32]:
    """Return the nearest float32 or bfloat16 values, held in float32, that are not below (not above) `values`."""
    with np.errstate(over="ignore", under="ignore"):
        single = values.astype(np.float32)
    limit = np.float32(np.inf if up else -np.inf)
    short = single < values if up else single > values
    single = np.where(short, np.nextafter(single, limit), single)
    if dtype != "bfloat16":
        return single
    cut = (single.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    short = cut < single if up else cut > single
    # What is cut off lies towards zero; the next magnitude is one more in the upper half of the word.
    return np.where(short, (cut.view(np.uint32) + np.uint32(0x10000)).view(np.float32), cut)
