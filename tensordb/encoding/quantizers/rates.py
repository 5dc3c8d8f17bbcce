"""How large a step gives so many bits: bisection on the entropy of the codes, in a sample of the elements.

Order-0 entropy is what a Huffman coder comes close to. Scales and exceptions count too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding.quantizers.exceptions import position_dtype
from tensordb.encoding.quantizers.floats import Floats
from tensordb.encoding.quantizers.sharing import ParameterMap

_SAMPLE, _RUN = 1 << 18, 1 << 10
_SMALLEST, _LARGEST = 1e-3, 16.0
_ROUNDS = 16
_OF_HUFFMAN = 0.03
"""Bits that whole-bit codes of bytes cost beyond the entropy, as measured on normally distributed values."""


def step_for_bits(
    bits: float, values: Floats, where: ParameterMap, rms: NDArray[np.float64], itemsizes: tuple[int, int]
) -> float:
    """Return the step, as a fraction of the RMS, with which elements take about `bits` bits.

    Args:
        bits: For everything that is stored.
        values: All elements.
        where: Which scale belongs to which.
        rms: Root mean square of the elements of each scale.
        itemsizes: Bytes of an element, and of a scale.
    """
    sample = _normalized(values, where, rms)
    itemsize, scale = itemsizes
    exception = 8 * (np.dtype(position_dtype(values.size)).itemsize + itemsize)
    left = bits - _OF_HUFFMAN - 8 * scale * where.total / values.size
    low, high = np.log(_SMALLEST), np.log(_LARGEST)
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        if _bits_with(sample, float(np.exp(middle)), exception) > left:
            low = middle
        else:
            high = middle
    return float(np.exp(high))


def _normalized(values: Floats, where: ParameterMap, rms: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return runs of elements, spread over the tensor, in units of their RMS."""
    total = values.size
    runs = np.arange(0, total, _RUN)
    if total > _SAMPLE:
        runs = runs[np.linspace(0, len(runs) - 2, _SAMPLE // _RUN).astype(np.int64)]
    positions = np.minimum((runs[:, None] + np.arange(_RUN)).reshape(-1), total - 1)[:total]
    record, within = positions // where.elements, positions % where.elements
    own = rms[record * where.count + within // where.inner % where.count]
    taken = np.divide(values[positions], own, out=np.zeros(len(positions)), where=own > 0)
    return np.asarray(taken[np.isfinite(taken)], np.float32)


def _bits_with(sample: NDArray[np.float32], step: float, exception: int) -> float:
    steps = np.rint(sample / np.float32(step))
    codes = np.clip(steps, -127, 127).astype(np.int64) + 127
    shares = np.bincount(codes, minlength=255) / max(1, len(codes))
    known = shares[shares > 0]
    entropy = float(-(known * np.log2(known)).sum())
    return entropy + exception * float(np.mean(np.abs(steps) > 127)) if len(steps) else 0.0
