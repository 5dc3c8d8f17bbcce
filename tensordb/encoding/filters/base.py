"""What every filter is: a reversible rearrangement of a record's bytes into groups that a codec compresses better.

The bytes of `records` equal parts (a chunk, or each record of a page's chunk) are taken apart in words of `width`
bytes. A group holds the same `k` bytes of every word; in it, the bytes of one record stay together, so that one
record can be put together from a slice of each group.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


@dataclass(slots=True)
class Slices:
    """The shares that single records have in each group, wherever they are.

    Attributes:
        sizes: Bytes of a record in each group.
        chunks: For each chunk the contents of its groups: decoded frames, or raw ones where they are mapped.
        addresses: Where those contents are in memory.
        which: For each record its chunk.
        within: For each record its number in that chunk.
    """

    sizes: tuple[int, ...]
    chunks: list[list[Any]] = field(default_factory=list)
    addresses: list[list[int]] = field(default_factory=list)
    which: list[int] = field(default_factory=list)
    within: list[int] = field(default_factory=list)

    def joined(self) -> list[Bytes]:
        """Return for each group the shares one after the other."""
        return [self._joined(group, size) for group, size in enumerate(self.sizes)]

    def _joined(self, group: int, size: int) -> Bytes:
        contents = [chunk[group] for chunk in self.chunks]
        places = zip(self.which, self.within, strict=True)
        return np.frombuffer(b"".join([contents[i][n * size : (n + 1) * size] for i, n in places]), np.uint8)


class Filter(ABC):
    """Bytes to groups of bytes. `id` is what a payload stores for it and never changes."""

    id: ClassVar[int]
    name: ClassVar[str]

    @property
    @abstractmethod
    def width(self) -> int:
        """Bytes of a word."""

    @property
    @abstractmethod
    def groups(self) -> tuple[int, ...]:
        """Bytes of a word that each group holds; they sum to `width`."""

    @abstractmethod
    def split(self, data: Bytes, records: int) -> list[Bytes]:
        """Return the groups of ``data[nbytes]``, flat; `nbytes` is a multiple of ``records * width``."""

    @abstractmethod
    def merge(self, groups: Sequence[Bytes], records: int, out: Bytes) -> None:
        """Write to ``out[nbytes]`` what `split` took apart."""

    def gather(self, slices: Slices, out: Bytes) -> None:
        """Write to ``out[nbytes]`` the records that have these shares of the groups."""
        self.merge(slices.joined(), len(slices.which), out)

    @abstractmethod
    def pack(self) -> bytes:
        """Return the parameters as a payload stores them."""

    @classmethod
    @abstractmethod
    def unpack(cls, data: bytes, width: int) -> Self:
        """Return the filter whose `pack` gave `data`, for words of `width` bytes."""
