"""Bitmaps of words that are not zero, changes against other words, and running sums of bytes, each in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from tensordb.encoding.kernels.compiling import compiled

_BITMAP = types.Array(types.uint8, 1, "C")
_READ_BITMAP = types.Array(types.uint8, 1, "C", readonly=True)


def _pack(kind):
    zero = kind(0)

    def pack(words, bitmap, kept):
        """Set a bit in the zeroed `bitmap` for each word that is not zero, copy it to `kept`, and return how many."""
        count = 0
        for i in range(words.size):
            kept[count] = words[i]
            present = words[i] != zero
            bitmap[i >> 3] |= np.uint8(present) << np.uint8(i & 7)
            count += present
        return count

    return pack


def _spread(kind):
    zero = kind(0)

    def spread(bitmap, kept, out):
        """Write the kept words where the bitmap has ones, and zero where it has none."""
        at = 0
        for i in range(out.size):
            if (bitmap[i >> 3] >> np.uint8(i & 7)) & 1:
                out[i] = kept[at]
                at += 1
            else:
                out[i] = zero

    return spread


def _changes(kind):
    one, top = kind(1), kind(kind.bitwidth - 1)

    def changes(words, base, out):
        """Write ``words - base`` as sign (the highest bit) and magnitude (one less where negative)."""
        for i in range(words.size):
            difference = kind(words[i] - base[i])
            negative = difference >> top
            out[i] = (difference ^ kind(kind(0) - negative)) | kind((negative & one) << top)

    return changes


def _apply(kind):
    one, top = kind(1), kind(kind.bitwidth - 1)
    low = kind((1 << (kind.bitwidth - 1)) - 1)

    def apply(bitmap, kept, out):
        """Add the kept changes to the words of `out` where the bitmap has ones."""
        at = 0
        for i in range(out.size):
            if (bitmap[i >> 3] >> np.uint8(i & 7)) & 1:
                negative = (kept[at] >> top) & one
                out[i] += kind((kept[at] & low) ^ kind(kind(0) - negative))
                at += 1

    return apply


def _accumulate(rows, size, stride):
    """Add to each byte of a row of `size` bytes the one a stride before it, front to back."""
    for begin in range(0, rows.size, size):
        for i in range(begin + stride, begin + size):
            rows[i] += rows[i - stride]


pack: dict[int, Any] = {}
spread: dict[int, Any] = {}
changes: dict[int, Any] = {}
apply: dict[int, Any] = {}
for _width in (1, 2, 4, 8):
    _kind = getattr(types, f"uint{8 * _width}")
    _words, _read = types.Array(_kind, 1, "C"), types.Array(_kind, 1, "C", readonly=True)
    pack[_width] = compiled(_pack(_kind), _read, _BITMAP, _words, returns=types.int64)
    spread[_width] = compiled(_spread(_kind), _READ_BITMAP, _read, _words)
    changes[_width] = compiled(_changes(_kind), _read, _read, _words)
    apply[_width] = compiled(_apply(_kind), _READ_BITMAP, _read, _words)
accumulate = compiled(_accumulate, types.Array(types.uint8, 1, "C"), types.int64, types.int64)
