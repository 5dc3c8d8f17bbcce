"""Splitting words into byte planes and merging them, in one pass at the speed of memory, without the GIL.

Importing this compiles the functions for their exact types, or loads what was compiled before. Words are rotated left
by one bit on the way into planes, and right on the way back; plane 0 is the most significant byte.

Planes are found by address, because those of one tensor lie in many places: decompressed ones in memory of their own,
raw ones in the mapped file. Callers vouch for the addresses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from tensordb.encoding.kernels.compiling import compiled

_BLOCK = 2048
"""Words that are split at a time, plane by plane: they stay in the first-level cache meanwhile."""

_ADDRESSES = types.Array(types.uint64, 1, "C", readonly=True)
_PLACES = types.Array(types.int64, 1, "C", readonly=True)


@intrinsic
def _bytes_at(_context: Any, _address: Any) -> Any:
    """Turn an address into a pointer to bytes."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.CPointer(types.uint8)(types.uint64), generate


def _split(bits: int) -> Any:
    kind = getattr(types, f"uint{bits}")
    planes, low = bits // 8, bits - 9
    one, top, byte = kind(1), kind(bits - 1), types.uint8

    def split(words, records, out, starts, strides):
        """Write plane `k` of record `r` to ``out[starts[k] + r * strides[k]:]``."""
        size = words.size // records
        for record in range(records):
            for begin in range(0, size, _BLOCK):
                count = min(_BLOCK, size - begin)
                block = words[record * size + begin : record * size + begin + count]
                for plane in range(planes):
                    at = starts[plane] + record * strides[plane] + begin
                    target = out[at : at + count]
                    if plane < planes - 1:
                        shift = kind(low - 8 * plane)
                        for i in range(count):
                            target[i] = byte(block[i] >> shift)
                    else:
                        for i in range(count):
                            target[i] = byte((block[i] << one) | (block[i] >> top))

    words_type = types.Array(kind, 1, "C", readonly=True)
    out_type = types.Array(types.uint8, 1, "C")
    return compiled(split, words_type, types.int64, out_type, _PLACES, _PLACES)


def _merge_2(addresses, out):
    """Write to `out` the words of each run; `addresses` has those of its two planes, run by run."""
    size = out.size // (addresses.size // 2)
    for run in range(addresses.size // 2):
        high = carray(_bytes_at(addresses[2 * run]), (size,))
        low = carray(_bytes_at(addresses[2 * run + 1]), (size,))
        target = out[run * size : (run + 1) * size]
        for i in range(size):
            target[i] = (np.uint16(high[i]) << 7) | (np.uint16(low[i]) >> 1) | (np.uint16(low[i]) << 15)


def _merge_4(addresses, out):
    """Do the same for four planes."""
    size = out.size // (addresses.size // 4)
    for run in range(addresses.size // 4):
        a = carray(_bytes_at(addresses[4 * run]), (size,))
        b = carray(_bytes_at(addresses[4 * run + 1]), (size,))
        c = carray(_bytes_at(addresses[4 * run + 2]), (size,))
        d = carray(_bytes_at(addresses[4 * run + 3]), (size,))
        target = out[run * size : (run + 1) * size]
        for i in range(size):
            high = (np.uint32(a[i]) << np.uint32(23)) | (np.uint32(b[i]) << np.uint32(15))
            low = (np.uint32(c[i]) << np.uint32(7)) | (np.uint32(d[i]) >> np.uint32(1))
            target[i] = high | low | (np.uint32(d[i]) << np.uint32(31))


def _merge_8(addresses, out):
    """Do the same for eight planes, block by block: nine streams at once are too many to be compiled well."""
    size = out.size // (addresses.size // 8)
    for run in range(addresses.size // 8):
        for begin in range(0, size, _BLOCK):
            count = min(_BLOCK, size - begin)
            target = out[run * size + begin : run * size + begin + count]
            last = carray(_bytes_at(addresses[8 * run + 7] + np.uint64(begin)), (count,))
            for i in range(count):
                target[i] = (np.uint64(last[i]) >> np.uint64(1)) | (np.uint64(last[i]) << np.uint64(63))
            for plane in range(7):
                shift = np.uint64(55 - 8 * plane)
                source = carray(_bytes_at(addresses[8 * run + plane] + np.uint64(begin)), (count,))
                for i in range(count):
                    target[i] |= np.uint64(source[i]) << shift


def _pack(addresses, lengths, starts, out):
    """Copy the bytes at each address to `out` where they start, and zero those before the next ones."""
    for run in range(addresses.size):
        count, start = lengths[run], starts[run]
        end = starts[run + 1] if run + 1 < starts.size else out.size
        source = carray(_bytes_at(addresses[run]), (count,))
        target = out[start : start + count]
        for i in range(count):
            target[i] = source[i]
        out[start + count : end] = 0


def _words(bits: int) -> Any:
    return types.Array(getattr(types, f"uint{bits}"), 1, "C")


split = {2: _split(16), 4: _split(32), 8: _split(64)}
"""By the bytes of a word: ``split[4](words, records, out, starts, strides)``."""
merge = {
    2: compiled(_merge_2, _ADDRESSES, _words(16)),
    4: compiled(_merge_4, _ADDRESSES, _words(32)),
    8: compiled(_merge_8, _ADDRESSES, _words(64)),
}
"""By the bytes of a word: ``merge[4](addresses, out)``."""
pack = compiled(_pack, _ADDRESSES, _PLACES, _PLACES, types.Array(types.uint8, 1, "C"))
"""``pack(addresses, lengths, starts, out)``."""
