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
        """Write a bit for each word, 0 where it is zero, copy the others to `kept`, and return how many they are."""
        count = types.uintp(0)
        for group in range(types.uintp(words.size >> 3)):
            bits = np.uint8(0)
            for k in range(types.uintp(8)):
                word = words[(group << types.uintp(3)) + k]
                present = np.uint8(word != zero)
                kept[count] = word
                bits |= present << np.uint8(k)
                count += types.uintp(present)
            bitmap[group] = bits
        for i in range(words.size & ~7, words.size):
            kept[count] = words[i]
            present = words[i] != zero
            bitmap[i >> 3] = (bitmap[i >> 3] if i & 7 else 0) | np.uint8(present) << np.uint8(i & 7)
            count += types.uintp(present)
        return count

    return pack


def _spread(kind):
    zero = kind(0)

    def spread(bitmap, kept, out):
        """Write the kept words, one for each one in the bitmap, where it has ones, and zero where it has none."""
        at = types.uintp(0)
        # Whole groups of eight words, while as many words are left.
        whole = types.uintp(out.size >> 3)
        group = types.uintp(0)
        while group < whole and at + types.uintp(8) <= types.uintp(kept.size):
            bits = bitmap[group]
            begin = group << types.uintp(3)
            # No branch for each bit: which words are zero cannot be foreseen.
            for k in range(types.uintp(8)):
                present = kind((bits >> np.uint8(k)) & np.uint8(1))
                out[begin + k] = kept[at] & kind(zero - present)
                at += types.uintp(present)
            group += types.uintp(1)
        for i in range(group << types.uintp(3), types.uintp(out.size)):
            if (bitmap[i >> types.uintp(3)] >> np.uint8(i & types.uintp(7))) & 1:
                out[i] = kept[at]
                at += types.uintp(1)
            else:
                out[i] = zero

    return spread


def _changes(kind):
    one, top, zero = kind(1), kind(kind.bitwidth - 1), kind(0)

    def changes(words, base, bitmap, kept):
        """Do what `pack` does with ``words - base`` as sign (the highest bit) and magnitude (one less if negative)."""
        count = types.uintp(0)
        whole = types.uintp(words.size >> 3)
        for group in range(whole):
            bits = np.uint8(0)
            for k in range(types.uintp(8)):
                i = (group << types.uintp(3)) + k
                difference = kind(words[i] - base[i])
                negative = (difference >> top) & one
                present = np.uint8(difference != zero)
                kept[count] = (difference ^ kind(zero - negative)) | kind(negative << top)
                bits |= present << np.uint8(k)
                count += types.uintp(present)
            bitmap[group] = bits
        for i in range(whole << types.uintp(3), types.uintp(words.size)):
            difference = kind(words[i] - base[i])
            negative = (difference >> top) & one
            present = np.uint8(difference != zero)
            kept[count] = (difference ^ kind(zero - negative)) | kind(negative << top)
            within = np.uint8(i & types.uintp(7))
            before = bitmap[i >> types.uintp(3)] if within else np.uint8(0)
            bitmap[i >> types.uintp(3)] = before | np.uint8(present << within)
            count += types.uintp(present)
        return count

    return changes


def _apply(kind):
    one, top = kind(1), kind(kind.bitwidth - 1)
    low = kind((1 << (kind.bitwidth - 1)) - 1)

    def apply(bitmap, kept, out):
        """Add the kept changes, one for each one in the bitmap, to the words of `out` where it has ones."""
        at = types.uintp(0)
        # Whole groups of eight words, while as many changes are left.
        whole = types.uintp(out.size >> 3)
        group = types.uintp(0)
        while group < whole and at + types.uintp(8) <= types.uintp(kept.size):
            bits = bitmap[group]
            begin = group << types.uintp(3)
            if bits == 255:
                for k in range(types.uintp(8)):
                    change = kept[at + k]
                    negative = (change >> top) & one
                    out[begin + k] += kind((change & low) ^ kind(kind(0) - negative))
                at += types.uintp(8)
            elif bits != 0:
                # No branch for each bit: which words changed cannot be foreseen.
                for k in range(types.uintp(8)):
                    present = kind((bits >> np.uint8(k)) & np.uint8(1))
                    change = kept[at]
                    negative = (change >> top) & one
                    out[begin + k] += kind((change & low) ^ kind(kind(0) - negative)) & kind(kind(0) - present)
                    at += types.uintp(present)
            group += types.uintp(1)
        for i in range(group << types.uintp(3), types.uintp(out.size)):
            if (bitmap[i >> types.uintp(3)] >> np.uint8(i & types.uintp(7))) & 1:
                negative = (kept[at] >> top) & one
                out[i] += kind((kept[at] & low) ^ kind(kind(0) - negative))
                at += types.uintp(1)

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
    changes[_width] = compiled(_changes(_kind), _read, _read, _BITMAP, _words, returns=types.int64)
    apply[_width] = compiled(_apply(_kind), _READ_BITMAP, _read, _words)
accumulate = compiled(_accumulate, types.Array(types.uint8, 1, "C"), types.int64, types.int64)
