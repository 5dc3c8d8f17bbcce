"""Undoes the filters of payloads; written from FORMAT.md alone.

A filter takes a chunk: its `count` words of `width` bytes, `parts` an element, in so many `records`; the filter's
parameters `p`; `group(n)`, which reads the next group of n bytes; for a delta, the words of the `base`.
"""

import numpy as np


def words(data, width):
    return np.frombuffer(data, f"<u{width}")


def bits(data, count):
    return np.unpackbits(words(data, 1), count=count, bitorder="little")


def merged(cuts, group, count, records=1):
    """Return words from groups of planes, the most significant first; `cuts`: how many planes each group holds."""
    runs = [words(group(cut * count), 1).reshape(records, cut, count // records) for cut in cuts]
    return (
        np.concatenate(runs, axis=1).swapaxes(1, 2).copy().view(f">u{sum(cuts)}").reshape(-1).astype(f"<u{sum(cuts)}")
    )


def rotated(word, width):
    return word if width == 1 else word >> 1 | word << (8 * width - 1)


def none(chunk):
    return words(chunk.group(chunk.count * chunk.width), chunk.width)


def planes(chunk):
    return rotated(merged(chunk.p, chunk.group, chunk.count, chunk.records), chunk.width)


def constant(chunk):
    return np.tile(words(chunk.group(chunk.width * chunk.parts), chunk.width), chunk.count // chunk.parts)


def bit_pack(chunk):
    each = chunk.p[0]
    packed = bits(chunk.group(-(-chunk.count * each // 8)), chunk.count * each)
    return np.packbits(packed.reshape(-1, each), axis=1, bitorder="little").reshape(-1)


def narrow(chunk):
    n, grouping, base = chunk.p[0], chunk.p[1], words(chunk.p[2:], 8)
    stored = merged([1] * n, chunk.group, chunk.count) if grouping else words(chunk.group(chunk.count * n), n)
    return (stored.astype("<u8") + base).astype(f"<u{chunk.width}")


def stride_delta(chunk):
    rows = words(chunk.group(chunk.count), 1).reshape(chunk.records, -1).copy()
    for stride in words(chunk.p, 4)[::-1].tolist():
        for first in range(stride):
            rows[:, first::stride] = rows[:, first::stride].cumsum(axis=1, dtype="u1")
    return rows.reshape(-1)


def zero_bitmap(chunk):
    ones = bits(chunk.group(-(-chunk.count // 8)), chunk.count).astype(bool)
    found = np.zeros(chunk.count, f"<u{chunk.width}")
    found[ones] = rotated(merged(chunk.p, chunk.group, int(ones.sum())), chunk.width)
    return found


def delta(chunk):
    chunk.p, top = chunk.p[32:], 8 * chunk.width - 1
    if chunk.group(1)[0]:
        signed = zero_bitmap(chunk)
        return chunk.base + (signed & ((1 << top) - 1) ^ -(signed >> top))
    chunk.group(0)
    return planes(chunk)


FILTERS = [none, planes, constant, bit_pack, narrow, stride_delta, zero_bitmap, delta]
