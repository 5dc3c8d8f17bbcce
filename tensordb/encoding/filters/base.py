"""What every filter is: a reversible rearrangement of a record's bytes into groups that a codec compresses better.

The bytes of `records` equal parts (a chunk, or each record of a page's chunk) are taken apart in words of `width`
bytes. A group holds the same `k` bytes of every word; in it, the bytes of one record stay together, so that one
record can be put together from a slice of each group.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


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

    @abstractmethod
    def pack(self) -> bytes:
        """Return the parameters as a payload stores them."""

    @classmethod
    @abstractmethod
    def unpack(cls, data: bytes, width: int) -> Self:
        """Return the filter whose `pack` gave `data`, for words of `width` bytes."""
