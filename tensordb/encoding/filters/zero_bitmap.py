"""Filter ``zero_bitmap``: a bit for each word says whether it is zero, and only the others are kept, as byte planes.

For what is exactly zero in many places without a pattern: activations behind a ReLU, pruned weights, moments of rows
that saw no gradient. A negative zero has a bit set and counts as any other value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding import kernels
from tensordb.encoding.filters.base import Bytes, Filter
from tensordb.encoding.filters.planes import Planes
from tensordb.encoding.filters.words import WORDS, word_bytes
from tensordb.encoding.scratch import scratch
from tensordb.errors import IntegrityError, UnsupportedFormatError

Words = NDArray[Any]
"""Unsigned integers."""


@dataclass(frozen=True, slots=True)
class ZeroBitmap(Filter):
    """A bitmap, and the words that are not zero.

    Attributes:
        sizes: How many adjacent planes of those words each further group holds, as in the filter ``planes``; words of
            a byte have one.
    """

    id: ClassVar[int] = 6
    name: ClassVar[str] = "zero_bitmap"
    sliceable: ClassVar[bool] = False
    sizes: tuple[int, ...]

    @property
    def width(self) -> int:
        """Bytes of a word."""
        return sum(self.sizes)

    @property
    def groups(self) -> int:
        """The bitmap and those of the planes."""
        return 1 + len(self.sizes)

    def shares(self, nbytes: int) -> list[int]:
        """Return the bytes of the bitmap, and of the planes if no word were zero."""
        words = nbytes // self.width
        return [-(-words // 8), *(words * size for size in self.sizes)]

    def share(self, group: int, nbytes: int, before: Sequence[Bytes]) -> int:
        """Return the bytes of a group, which for planes follow from the bitmap."""
        if group == 0:
            return self.shares(nbytes)[0]
        if group == 1:
            return ones_in(before[0]) * self.sizes[0]
        return len(before[1]) // self.sizes[0] * self.sizes[group - 1]

    def split(self, data: Bytes, records: int) -> list[Bytes]:
        """Return the bitmap and the planes of the words that are not zero."""
        bitmap, kept = kept_of(data.view(WORDS[self.width]))
        return [bitmap, *planes_of(kept, self.sizes)]

    def merge(self, groups: Sequence[Bytes], records: int, out: Bytes) -> None:
        """Put the words in their places and zeros between them."""
        words = out.view(WORDS[self.width])
        kept = words_of(groups[1:], self.sizes)
        bitmap = own_bitmap(groups[0], len(words), len(kept))
        loops = sparse_loops(words)
        if loops is not None:
            loops.spread[self.width](bitmap, kept, words)
            return
        words[:] = 0
        words[present_in(bitmap, len(words))] = kept

    def pack(self) -> bytes:
        """Return a byte for each group of planes."""
        return bytes(self.sizes)

    @classmethod
    def unpack(cls, data: bytes, dtype: str) -> Self:
        """Return the filter with these groups."""
        if 0 in data or sum(data) != word_bytes(dtype):
            raise UnsupportedFormatError(f"planes {tuple(data)} do not make a word of {dtype}; use a newer release")
        return cls(tuple(data))


def planes_of(words: Words, sizes: tuple[int, ...], room: Bytes | None = None) -> list[Bytes]:
    """Return the planes of words, which may be none, in these groups; they may lie in `room`, if it is given."""
    data = words.view(np.uint8)
    if len(sizes) == words.itemsize == 1:
        return [data.copy()]
    planes = Planes(sizes)
    return planes.split(data, 1) if room is None else planes.split_into(room[: data.nbytes], data, 1)


def words_of(groups: Sequence[Bytes], sizes: tuple[int, ...]) -> Words:
    """Return the words that `planes_of` took apart, in the thread's scratch memory."""
    width = sum(sizes)
    if width == 1:
        return groups[0]
    out = scratch("words", len(groups[0]) // sizes[0] * width)
    Planes(sizes).merge(groups, 1, out)
    words: Words = out.view(WORDS[width])
    return words


def kept_of(words: Words) -> tuple[Bytes, Words]:
    """Return the bitmap of words that are not zero, and those words, in the thread's scratch memory."""
    loops = sparse_loops(words)
    if loops is None:
        present = words != 0
        return np.packbits(present, bitorder="little"), words[present]
    bitmap, kept = np.empty(-(-len(words) // 8), np.uint8), scratch("words", words.nbytes).view(words.dtype)
    count = loops.pack[words.itemsize](words, bitmap, kept)
    return bitmap, kept[:count]


def sparse_loops(words: Words) -> Any:
    """Return the compiled loops if they are there for these words."""
    return kernels.sparse(words.nbytes) if words.flags.aligned else None


def ones_in(bitmap: Bytes) -> int:
    """Return how many words a bitmap says there are."""
    return int(np.bitwise_count(bitmap).sum())


def own_bitmap(bitmap: Bytes, words: int, kept: int) -> Bytes:
    """Return a copy of a bitmap of so many words, once it has a one for each that was kept.

    A copy, because a mapped file that is written to meanwhile must not lead compiled loops out of what was kept.

    Raises:
        IntegrityError: if it has more or fewer ones, or bits after the last word.
    """
    own = bitmap.copy()
    if words % 8 and own[-1] >> (words % 8):
        raise IntegrityError("a bitmap has bits after its last word; the payload is forged")
    if ones_in(own) != kept:
        raise IntegrityError(f"a bitmap does not have {kept} ones any more; restore the payload from a copy")
    return own


def present_in(bitmap: Bytes, words: int) -> NDArray[np.bool_]:
    """Return a bool for each word."""
    return np.unpackbits(bitmap, count=words, bitorder="little").view(np.bool_)
