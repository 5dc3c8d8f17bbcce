"""Records of pages put together straight where they belong, each in a place of its own, in one pass without the GIL.

What is read and where it is written are addresses, for which callers vouch: the planes of one record lie in several
pieces of memory, and the records of one page go into many batches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from tensordb.encoding.kernels.compiling import compiled

_FEW = 16
"""Bytes of a stride below which each of its columns is summed up by itself."""
_ADDRESSES = types.Array(types.uint64, 1, "C", readonly=True)
_STRIDES = types.Array(types.int64, 1, "C", readonly=True)


def _pointer(kind: Any) -> Any:
    @intrinsic
    def pointer(_context: Any, _address: Any) -> Any:
        """Turn an address into a pointer."""

        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(types.CPointer(kind)))

        return types.CPointer(kind)(types.uint64), generate

    return pointer


_bytes_at = _pointer(types.uint8)
_pairs_at, _quads_at, _octets_at = _pointer(types.uint16), _pointer(types.uint32), _pointer(types.uint64)


def _merge_2(addresses, targets, size):
    """Write `size` words to each target; `addresses` has those of the two planes of each, target by target."""
    for run in range(targets.size):
        high = carray(_bytes_at(addresses[2 * run]), (size,))
        low = carray(_bytes_at(addresses[2 * run + 1]), (size,))
        target = carray(_pairs_at(targets[run]), (size,))
        for i in range(size):
            target[i] = (np.uint16(high[i]) << 7) | (np.uint16(low[i]) >> 1) | (np.uint16(low[i]) << 15)


def _merge_4(addresses, targets, size):
    """Do the same for four planes."""
    for run in range(targets.size):
        a = carray(_bytes_at(addresses[4 * run]), (size,))
        b = carray(_bytes_at(addresses[4 * run + 1]), (size,))
        c = carray(_bytes_at(addresses[4 * run + 2]), (size,))
        d = carray(_bytes_at(addresses[4 * run + 3]), (size,))
        target = carray(_quads_at(targets[run]), (size,))
        for i in range(size):
            high = (np.uint32(a[i]) << np.uint32(23)) | (np.uint32(b[i]) << np.uint32(15))
            low = (np.uint32(c[i]) << np.uint32(7)) | (np.uint32(d[i]) >> np.uint32(1))
            target[i] = high | low | (np.uint32(d[i]) << np.uint32(31))


def _merge_8(addresses, targets, size):
    """Do the same for eight planes, one after the other."""
    for run in range(targets.size):
        target = carray(_octets_at(targets[run]), (size,))
        last = carray(_bytes_at(addresses[8 * run + 7]), (size,))
        for i in range(size):
            target[i] = (np.uint64(last[i]) >> np.uint64(1)) | (np.uint64(last[i]) << np.uint64(63))
        for plane in range(7):
            shift = np.uint64(55 - 8 * plane)
            source = carray(_bytes_at(addresses[8 * run + plane]), (size,))
            for i in range(size):
                target[i] |= np.uint64(source[i]) << shift


def _copy(addresses, targets, size):
    """Copy `size` bytes from each address to its target."""
    for run in range(targets.size):
        source = carray(_bytes_at(addresses[run]), (size,))
        target = carray(_bytes_at(targets[run]), (size,))
        for i in range(size):
            target[i] = source[i]


def _sum(addresses, targets, size, strides):
    """Write the bytes whose differences, by each stride in turn, are at the addresses."""
    for run in range(targets.size):
        source = carray(_bytes_at(addresses[run]), (size,))
        target = carray(_bytes_at(targets[run]), (size,))
        for i in range(size):
            target[i] = source[i]
        for stride in strides[::-1]:
            if stride < _FEW:
                for lane in range(stride):
                    # In a register: to load what was only just stored takes several times as long.
                    total = np.uint8(0)
                    for i in range(lane, size, stride):
                        total = np.uint8(total + target[i])
                        target[i] = total
                continue
            for begin in range(stride, size, stride):
                count = min(stride, size - begin)
                before = carray(_bytes_at(targets[run] + np.uint64(begin - stride)), (count,))
                here = carray(_bytes_at(targets[run] + np.uint64(begin)), (count,))
                for i in range(count):
                    here[i] += before[i]


merge: dict[int, Any] = {
    2: compiled(_merge_2, _ADDRESSES, _ADDRESSES, types.int64),
    4: compiled(_merge_4, _ADDRESSES, _ADDRESSES, types.int64),
    8: compiled(_merge_8, _ADDRESSES, _ADDRESSES, types.int64),
}
"""By the bytes of a word: ``merge[4](addresses, targets, words)``."""
copy = compiled(_copy, _ADDRESSES, _ADDRESSES, types.int64)
total = compiled(_sum, _ADDRESSES, _ADDRESSES, types.int64, _STRIDES)
