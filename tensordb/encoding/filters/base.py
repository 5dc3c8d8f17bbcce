"""What every filter is: a reversible rearrangement of a chunk's bytes into groups that a codec compresses better.

A chunk holds `records` equal parts: one, or the records of a page's chunk. With most filters each record has a slice
of each group, so that it can be put together by itself; with the others a chunk is always read whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Addresses = NDArray[np.uint64]


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
    """Bytes to groups of bytes. `id` is what a payload stores for it and never changes.

    Attributes:
        sliceable: Whether a record's share of each group is a slice of it, of the same size for all. If not, a chunk
            is taken apart and put together whole, whatever records it holds.
        needs_base: Whether the codes of another tensor are needed: `merge` finds those of the chunk in `out`.
        spreads: Whether it has a compiled way to write records to wherever each belongs.
        by_record: Whether several records of a chunk must be put together one by one.
        groups: Groups of a chunk.
    """

    id: ClassVar[int]
    name: ClassVar[str]
    sliceable: ClassVar[bool] = True
    needs_base: ClassVar[bool] = False
    spreads: ClassVar[bool] = False

    @property
    def by_record(self) -> bool:
        """False unless a group interleaves the records of a chunk with something else."""
        return False

    @property
    def groups(self) -> int:
        """One group."""
        return 1

    @abstractmethod
    def shares(self, nbytes: int) -> list[int]:
        """Return the bytes of each group for `nbytes` bytes of codes; the most they can be if the values decide."""

    def share(self, group: int, nbytes: int, before: Sequence[Bytes]) -> int:
        """Return the bytes of a group, once the groups `before` it are known.

        Raises:
            IntegrityError: if those are none that `split` makes.
        """
        return self.shares(nbytes)[group]

    @abstractmethod
    def split(self, data: Bytes, records: int) -> list[Bytes]:
        """Return the groups of ``data[nbytes]``, flat; `nbytes` is a multiple of `records` times the word."""

    def split_into(self, room: Bytes, data: Bytes, records: int) -> list[Bytes]:
        """Return the groups, which may lie in ``room[nbytes]``."""
        return self.split(data, records)

    @abstractmethod
    def merge(self, groups: Sequence[Bytes], records: int, out: Bytes) -> None:
        """Write to ``out[nbytes]`` what `split` took apart.

        Raises:
            IntegrityError: if the groups are none that `split` makes.
        """

    def gather(self, slices: Slices, out: Bytes) -> None:
        """Write to ``out[nbytes]`` the records that have these shares of the groups."""
        self.merge(slices.joined(), len(slices.which), out)

    def spread(
        self, loops: Any, contents: Addresses, within: NDArray[np.int64], record_bytes: int, targets: Addresses
    ) -> None:
        """Write single records to memory, each to a place of its own; only where the filter `spreads`.

        Args:
            loops: The compiled ones of `kernels.spreading`; addresses are not checked.
            contents: Where the groups of each record's chunk are, ``[records, groups]``.
            within: Number of each record in its chunk.
            record_bytes: Bytes of a record.
            targets: Where each record belongs.
        """
        raise NotImplementedError(f"{self.name} spreads no records")

    @abstractmethod
    def pack(self) -> bytes:
        """Return the parameters as a payload stores them."""

    @classmethod
    @abstractmethod
    def unpack(cls, data: bytes, dtype: str) -> Self:
        """Return the filter whose `pack` gave `data`, for codes of this dtype.

        Raises:
            FormatError: if there is no such filter for this dtype.
        """
