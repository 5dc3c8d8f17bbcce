"""Filter ``narrow``: integers as their distance from the smallest one, in no more bytes than that needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from tensordb.encoding.filters.base import Bytes, Filter
from tensordb.encoding.filters.words import WORDS, is_integer, word_bytes
from tensordb.errors import FormatError, UnsupportedFormatError


@dataclass(frozen=True, slots=True)
class Narrow(Filter):
    """Fewer bytes for each integer.

    Attributes:
        width: Bytes of an integer as it is: 1, 2, 4 or 8.
        narrow: Bytes of one as it is stored, at most `width`.
        base: What is subtracted, as an unsigned word; differences wrap around.
        planes: Whether the stored bytes are grouped by significance, the highest first; otherwise they stay together.
    """

    id: ClassVar[int] = 4
    name: ClassVar[str] = "narrow"
    width: int
    narrow: int
    base: int
    planes: bool = False

    @classmethod
    def fitting(cls, data: Bytes, dtype: str, *, planes: bool = False) -> Self:
        """Return the narrowest filter for all integers in `data`, which is not empty."""
        width = word_bytes(dtype)
        values = data.view(np.dtype(dtype))
        low, high = int(values.min()), int(values.max())
        narrow = next(size for size in (1, 2, 4, 8) if high - low < 1 << (8 * size))
        if narrow >= width:
            return cls(width, width, 0, planes)
        return cls(width, narrow, low % (1 << (8 * width)), planes)

    @property
    def groups(self) -> int:
        """One, or one for each stored byte."""
        return self.narrow if self.planes else 1

    def shares(self, nbytes: int) -> list[int]:
        """Return the stored bytes of so many integers."""
        words = nbytes // self.width
        return [words] * self.narrow if self.planes else [words * self.narrow]

    def split(self, data: Bytes, records: int) -> list[Bytes]:
        """Subtract, narrow, and group if asked for."""
        words = data.view(WORDS[self.width])
        stored = (words - WORDS[self.width](self.base)).astype(WORDS[self.narrow]) if self._narrows else words
        if not self.planes:
            return [stored.view(np.uint8)]
        columns = stored.view(np.uint8).reshape(-1, self.narrow)
        return [np.ascontiguousarray(columns[:, place]) for place in range(self.narrow - 1, -1, -1)]

    def merge(self, groups: Sequence[Bytes], records: int, out: Bytes) -> None:
        """Put the integers together, widen them and add."""
        words = out.view(WORDS[self.width])
        stored = groups[0].view(WORDS[self.narrow]) if not self.planes else self._joined(groups)
        words[:] = stored
        if self.base:
            words += WORDS[self.width](self.base)

    @property
    def _narrows(self) -> bool:
        return self.narrow < self.width

    def _joined(self, groups: Sequence[Bytes]) -> Bytes:
        columns = np.empty((len(groups[0]), self.narrow), np.uint8)
        for place, group in enumerate(reversed(groups)):
            columns[:, place] = group
        joined: Bytes = columns.reshape(-1).view(WORDS[self.narrow])
        return joined

    def pack(self) -> bytes:
        """Return stored bytes, grouping (a byte each) and base (8 bytes)."""
        return bytes((self.narrow, self.planes)) + self.base.to_bytes(8, "little")

    @classmethod
    def unpack(cls, data: bytes, dtype: str) -> Self:
        """Return the filter that `pack` describes."""
        width = word_bytes(dtype)
        if len(data) != 10 or not is_integer(dtype) or data[0] not in WORDS or data[0] > width or data[1] > 1:
            raise UnsupportedFormatError(
                f"narrow has parameters {data.hex()} for {dtype}, unknown to this release; use a newer one"
            )
        base = int.from_bytes(data[2:], "little")
        if base >> (8 * width):
            raise FormatError(f"narrow has the base {base}, which is no {dtype}; the payload is forged")
        return cls(width, data[0], base, bool(data[1]))
