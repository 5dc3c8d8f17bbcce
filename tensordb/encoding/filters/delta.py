"""Filter ``delta``: what changed since another tensor of the same shape, its base, where that is smaller.

The bits of a word are taken as an unsigned integer, and the base's subtracted, so that every bit comes back. The signed
differences are kept as sign and magnitude, whose byte planes (rotated, as all planes are) are those of their zigzag
numbers. Words that did not change are only a bit in a bitmap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from tensordb.encoding.filters.base import Bytes, Filter
from tensordb.encoding.filters.planes import Planes
from tensordb.encoding.filters.words import WORDS, word_bytes
from tensordb.encoding.filters.zero_bitmap import (
    Words,
    kept_of,
    ones_in,
    own_bitmap,
    planes_of,
    present_in,
    sparse_loops,
    words_of,
)
from tensordb.encoding.scratch import scratch
from tensordb.errors import IntegrityError, UnsupportedFormatError

_ID_BYTES = 32
_ALONE, _CHANGED = 0, 1


@dataclass(frozen=True, slots=True)
class Delta(Filter):
    """A mode, a bitmap of the words that changed, and their differences as planes; or all words as planes.

    Attributes:
        base: Content id of the base, 32 bytes.
        sizes: How many adjacent planes each further group holds; they sum to the bytes of a word.
    """

    id: ClassVar[int] = 7
    name: ClassVar[str] = "delta"
    sliceable: ClassVar[bool] = False
    needs_base: ClassVar[bool] = True
    base: bytes
    sizes: tuple[int, ...]

    @property
    def width(self) -> int:
        """Bytes of a word."""
        return sum(self.sizes)

    @property
    def groups(self) -> int:
        """Mode, bitmap, and those of the planes."""
        return 2 + len(self.sizes)

    def shares(self, nbytes: int) -> list[int]:
        """Return the most bytes that each group can have."""
        words = nbytes // self.width
        return [1, -(-words // 8), *(words * size for size in self.sizes)]

    def share(self, group: int, nbytes: int, before: Sequence[Bytes]) -> int:
        """Return the bytes of a group, which depend on the mode and on the bitmap."""
        most = self.shares(nbytes)[group]
        if group == 0:
            return most
        if before[0][0] > _CHANGED:
            raise IntegrityError(f"a chunk has the delta mode {before[0][0]}, which does not exist; it is forged")
        if before[0][0] == _ALONE:
            return 0 if group == 1 else most
        if group == 1:
            return most
        words = ones_in(before[1]) if group == 2 else len(before[2]) // self.sizes[0]
        return words * self.sizes[group - 2]

    def is_change(self, groups: Sequence[Bytes]) -> bool:
        """Tell whether `merge` needs the base's chunk for these groups."""
        return bool(groups[0][0] == _CHANGED)

    def split(self, data: Bytes, records: int) -> list[Bytes]:
        """Return the groups of a chunk that is kept without its base."""
        words = data.view(WORDS[self.width])
        return [np.array([_ALONE], np.uint8), np.empty(0, np.uint8), *planes_of(words, self.sizes)]

    def split_against(self, data: Bytes, base: Bytes, room: Bytes | None = None) -> list[Bytes]:
        """Return the groups of a chunk as its difference from the base's; they may lie in ``room[nbytes]``."""
        kind = WORDS[self.width]
        bitmap, kept = _changes(data.view(kind), base.view(kind))
        return [np.array([_CHANGED], np.uint8), bitmap, *planes_of(kept, self.sizes, room)]

    def merge(self, groups: Sequence[Bytes], records: int, out: Bytes) -> None:
        """Write a chunk to `out`, which holds the base's if the groups are a change."""
        words = out.view(WORDS[self.width])
        if not self.is_change(groups) and self.width > 1:
            Planes(self.sizes).merge(groups[2:], 1, out)
            return
        kept = words_of(groups[2:], self.sizes)
        if not self.is_change(groups):
            words[:] = kept
            return
        bitmap = own_bitmap(groups[1], len(words), len(kept))
        loops = sparse_loops(words)
        if loops is not None:
            loops.apply[self.width](bitmap, kept, words)
        else:
            changed = present_in(bitmap, len(words))
            words[changed] = _applied(kept, words[changed])

    def pack(self) -> bytes:
        """Return the base's content id and a byte for each group of planes."""
        return self.base + bytes(self.sizes)

    @classmethod
    def unpack(cls, data: bytes, dtype: str) -> Self:
        """Return the filter with this base and these groups."""
        base, sizes = data[:_ID_BYTES], tuple(data[_ID_BYTES:])
        if len(base) != _ID_BYTES or 0 in sizes or sum(sizes) != word_bytes(dtype):
            raise UnsupportedFormatError(f"planes {sizes} do not make a word of {dtype}; use a newer release")
        return cls(base, sizes)


def _changes(words: Words, base: Words) -> tuple[Bytes, Words]:
    """Return a bitmap of the words that differ, and ``words - base`` of those, in the thread's scratch memory.

    A difference is kept as sign (the highest bit) and magnitude (one less where it is negative).
    """
    loops = sparse_loops(words) if base.flags.aligned else None
    if loops is not None:
        bitmap, kept = np.empty(-(-len(words) // 8), np.uint8), scratch("words", words.nbytes).view(words.dtype)
        return bitmap, kept[: loops.changes[words.itemsize](words, base, bitmap, kept)]
    top = 8 * words.itemsize - 1
    difference: Words = words - base
    negative = difference >> words.dtype.type(top)
    difference ^= -negative
    difference |= negative << words.dtype.type(top)
    return kept_of(difference)


def _applied(changes: Words, base: Words) -> Words:
    """Return the words that `_changes` came from."""
    top = changes.dtype.type(8 * changes.itemsize - 1)
    negative = changes >> top
    magnitude = changes & ~(changes.dtype.type(1) << top)
    magnitude ^= -negative
    words: Words = base + magnitude
    return words
