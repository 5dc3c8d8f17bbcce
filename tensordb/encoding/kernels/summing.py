"""What the values of rows sum up to, in one pass that keeps to the first-level cache, without the GIL.

Floats are compared as the integers that order alike, which needs no care for NaN: whatever is not finite lies beyond
the largest finite number on one side or the other. Sums are of float64 and of differences from the row's first finite
value, so that a mean far from zero costs the deviation no digits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from tensordb.encoding.kernels.compiling import compiled

_BLOCK = 2048
"""Values that are looked at twice, which stay in the first-level cache meanwhile."""
_SUMS = types.Array(types.float64, 2, "C")


def _summarize(word, bits, infinity):
    top, bottom = (1 << (bits - 1)) - 1, -(1 << (bits - 1))
    shift, flip, least, most = word(bits - 1), word(top), word(-infinity), word(infinity - 1)

    def summarize(words, values, size, extremes, sums):
        """Write the ordered integers of least and largest value of each row of `size` values, and its sums.

        These are mean, squared deviations from it, squares, zeros, and how many values are not finite, which are left
        out of all else.
        """
        for row in range(sums.shape[0]):
            begin = row * size
            low, high, zeros, other = word(top), word(bottom), 0, 0
            near: Any = np.float64(values[begin])
            total = deviations = squares = 0.0
            for start in range(begin, begin + size, _BLOCK):
                count = min(_BLOCK, begin + size - start)
                block, numbers = words[start : start + count], values[start : start + count]
                some = word(0)
                for i in range(count):
                    key = word(block[i] ^ word(word(block[i] >> shift) & flip))
                    low = min(low, key)
                    high = max(high, key)
                    some += word(word(block[i] & flip) == word(0))
                zeros += some
                for i in range(count):
                    value = np.float64(numbers[i])
                    from_near = value - near
                    total += from_near
                    deviations += from_near * from_near
                    squares += value * value
            if low < least or high > most:
                low, high, total, deviations, squares, near = word(top), word(bottom), 0.0, 0.0, 0.0, 0.0
                for i in range(begin, begin + size):
                    key = word(words[i] ^ word(word(words[i] >> shift) & flip))
                    if key < least or key > most:
                        other += 1
                        continue
                    value = np.float64(values[i])
                    if low > high:
                        near = value
                    low, high = min(low, key), max(high, key)
                    total += value - near
                    deviations += (value - near) * (value - near)
                    squares += value * value
            mean = total / max(size - other, 1)
            extremes[row, 0], extremes[row, 1] = low, high
            sums[row, 0] = near + mean
            sums[row, 1] = max(deviations - total * mean, 0.0)
            sums[row, 2], sums[row, 3], sums[row, 4] = squares, zeros, other

    return summarize


def _compiled(word: Any, number: Any, bits: int, infinity: int) -> Any:
    words, numbers = (types.Array(kind, 1, "C", readonly=True) for kind in (word, number))
    extremes = types.Array(word, 2, "C")
    # The order of additions is free, which is what lets several be done at once.
    loop = _summarize(word, bits, infinity)
    return compiled(loop, words, numbers, types.int64, extremes, _SUMS, fastmath={"reassoc", "contract"})


summarize = {
    4: _compiled(types.int32, types.float32, 32, 0x7F800000),
    8: _compiled(types.int64, types.float64, 64, 0x7FF0000000000000),
}
"""By the bytes of a float: ``summarize[4](words, values, size, extremes, sums)``."""
