"""Filter ``planes``: the bytes of floating-point words, most significant first, with the sign moved to the low end.

Rotating a word left by one bit puts the whole exponent (8 bits of it, where it is longer) into the first byte. That
byte is far from uniform in weights and embeddings; the mantissa bytes are mostly noise, and a codec need not try them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding import kernels
from tensordb.encoding.addresses import address_of
from tensordb.encoding.filters.base import Addresses, Bytes, Filter, Slices
from tensordb.encoding.filters.words import WORDS
from tensordb.errors import UnsupportedFormatError

_FEW_RECORDS = 16
"""Records below which addresses are calculated one by one."""


def plane_width(dtype: str) -> int | None:
    """Return the bytes of a floating-point word of this dtype, or None where planes do not apply.

    A complex element is two words; one-byte floats are their own plane and need no filter.
    """
    return {
        "float16": 2,
        "bfloat16": 2,
        "complex32": 2,
        "float32": 4,
        "complex64": 4,
        "float64": 8,
        "complex128": 8,
    }.get(dtype)


@dataclass(frozen=True, slots=True)
class Planes(Filter):
    """Byte planes of rotated words.

    Attributes:
        sizes: How many adjacent planes each group holds, from the most significant one; they sum to the word's bytes.
    """

    id: ClassVar[int] = 1
    name: ClassVar[str] = "planes"
    spreads: ClassVar[bool] = True
    sizes: tuple[int, ...]

    @property
    def width(self) -> int:
        """Bytes of a word: 2, 4 or 8."""
        return sum(self.sizes)

    @property
    def by_record(self) -> bool:
        """Whether a group has several planes: their runs lie one after the other for each record."""
        return max(self.sizes) > 1

    @property
    def groups(self) -> int:
        """As many as there are sizes."""
        return len(self.sizes)

    def shares(self, nbytes: int) -> list[int]:
        """Return the bytes of each group's planes."""
        words = nbytes // self.width
        return [words * size for size in self.sizes]

    def split(self, data: Bytes, records: int) -> list[Bytes]:
        """Return the groups, each ``[records, planes, words of a record]``, flat."""
        return self.split_into(np.empty(data.nbytes, np.uint8), data, records)

    def split_into(self, room: Bytes, data: Bytes, records: int) -> list[Bytes]:
        """Return the groups in `room`, one behind the other."""
        source = data.view(WORDS[self.width])
        compiled = kernels.ready(data.nbytes) if source.flags.aligned else None
        if compiled is None:
            return self._split(data, records)
        starts, strides = _places(self.sizes, data.nbytes // self.width, records)
        compiled.split[self.width](source, records, room, starts, strides)
        words = data.nbytes // self.width
        edges = [words * end for end in accumulate(self.sizes, initial=0)]
        return [room[begin:end] for begin, end in pairwise(edges)]

    def merge(self, groups: Sequence[Bytes], records: int, out: Bytes) -> None:
        """Put the words together and rotate them back, in place in `out`."""
        compiled = self._compiled(out)
        if compiled is not None and records == 1:
            shares = zip(groups, self.sizes, strict=True)
            places = [address_of(group) + len(group) // size * plane for group, size in shares for plane in range(size)]
            compiled.merge[self.width](np.array(places, np.uint64), out.view(WORDS[self.width]))
            return
        kind = WORDS[self.width]
        flat = out.view(kind)
        words = flat.reshape(records, -1)
        for position, plane in enumerate(self._planes(groups, records)):
            if position == 0:
                np.copyto(words, plane)
            else:
                np.left_shift(flat, kind(8), out=flat)
                np.bitwise_or(words, plane, out=words)
        sign = np.left_shift(flat, kind(8 * self.width - 1))
        np.right_shift(flat, kind(1), out=flat)
        np.bitwise_or(flat, sign, out=flat)

    def gather(self, slices: Slices, out: Bytes) -> None:
        """Put the words of single records together."""
        compiled = self._compiled(out)
        if compiled is None:
            Filter.gather(self, slices, out)
            return
        compiled.merge[self.width](self._addresses(slices), out.view(WORDS[self.width]))

    def spread(
        self, loops: Any, contents: Addresses, within: NDArray[np.int64], record_bytes: int, targets: Addresses
    ) -> None:
        """Put their words together where they belong."""
        words = record_bytes // self.width
        groups = np.repeat(np.arange(self.groups), self.sizes)
        # Of each plane: its number in its group, and the bytes that a record has in that group.
        numbers = np.concatenate([np.arange(size) for size in self.sizes])
        shares = np.array(self.sizes)[groups] * words
        places = contents[:, groups] + (within[:, None] * shares + numbers * words).astype(np.uint64)
        loops.merge[self.width](places.reshape(-1), targets, words)

    def _addresses(self, slices: Slices) -> NDArray[np.uint64]:
        """Return where the planes of each record begin, record by record."""
        shares = [(share, share // size, size) for share, size in zip(slices.sizes, self.sizes, strict=True)]
        if len(slices.which) < _FEW_RECORDS:
            places = [
                slices.addresses[chunk][group] + number * share + plane * step
                for chunk, number in zip(slices.which, slices.within, strict=True)
                for group, (share, step, size) in enumerate(shares)
                for plane in range(size)
            ]
            return np.array(places, np.uint64)
        contents = np.array(slices.addresses)[slices.which]
        within = np.array(slices.within)
        columns = [
            (contents[:, group] + within * share)[:, None] + step * np.arange(size)
            for group, (share, step, size) in enumerate(shares)
        ]
        return np.concatenate(columns, axis=1).astype(np.uint64).reshape(-1)

    def _compiled(self, out: Bytes) -> Any:
        return kernels.ready(out.nbytes) if out.view(WORDS[self.width]).flags.aligned else None

    def _split(self, data: Bytes, records: int) -> list[Bytes]:
        kind = WORDS[self.width]
        words = data.view(kind)
        rotated = np.left_shift(words, kind(1))
        rotated |= np.right_shift(words, kind(8 * self.width - 1))
        rotated = rotated.reshape(records, -1)
        groups = []
        shift = 8 * self.width
        for size in self.sizes:
            group = np.empty((records, size, rotated.shape[1]), np.uint8)
            for plane in range(size):
                shift -= 8
                np.copyto(group[:, plane], rotated >> kind(shift) if shift else rotated, casting="unsafe")
            groups.append(group.reshape(-1))
        return groups

    def _planes(self, groups: Sequence[Bytes], records: int) -> list[NDArray[np.uint8]]:
        shaped = (group.reshape(records, size, -1) for group, size in zip(groups, self.sizes, strict=True))
        return [group[:, plane] for group in shaped for plane in range(group.shape[1])]

    def pack(self) -> bytes:
        """Return a byte for each group: its planes."""
        return bytes(self.sizes)

    @classmethod
    def unpack(cls, data: bytes, dtype: str) -> Self:
        """Return the filter with these groups."""
        width = plane_width(dtype) or 1
        if width not in WORDS or width == 1 or sum(data) != width or 0 in data:
            raise UnsupportedFormatError(
                f"planes {tuple(data)} do not make a word of {width} bytes; use a newer release"
            )
        return cls(tuple(data))


@lru_cache(maxsize=256)
def _places(sizes: tuple[int, ...], words: int, records: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the planes of the first record begin, all groups in one piece, and the steps to the next."""
    share = words // records
    starts, strides, at = [], [], 0
    for size in sizes:
        starts += [at + plane * share for plane in range(size)]
        strides += [size * share] * size
        at += size * words
    return np.array(starts), np.array(strides)
