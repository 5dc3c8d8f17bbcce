"""A set of ids that may be asked whether one is surely absent, in a few bits for each."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from tensordb.catalog.rows import scalar

FEWEST = 8
"""Questions before a column is read for them."""
WORTH_IT = 5000
"""Ids that are read for each question that was asked: by then all of these cost as much."""
BITS_PER_ID = 10
"""Of which one in a hundred ids that are absent is taken for present."""
_WORD = np.dtype("<u8")


class BloomFilter:
    """Ids of 16 bytes or more that are hashes themselves, so that their own bits say which bits of the filter are set.

    Args:
        capacity: Ids for which the filter is made. With more of them it is wrong more often, on the safe side.
        bits: Bits for each.

    >>> known = BloomFilter(1000)
    >>> known.add(bytes(range(16)))
    >>> known.surely_lacks(bytes(range(16))), known.surely_lacks(bytes(range(1, 17)))
    (False, True)
    """

    def __init__(self, capacity: int, bits: int = BITS_PER_ID) -> None:
        self.capacity = capacity
        self.count = 0
        self._size = max(64, capacity * bits)
        self._hashes = max(1, round(bits * math.log(2)))
        self._bits = bytearray(-(-self._size // 8))

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return len(self._bits)

    def add(self, item: bytes) -> None:
        """Put an id in."""
        self.count += 1
        for place in self._places(item):
            self._bits[place >> 3] |= 1 << (place & 7)

    def add_all(self, items: NDArray[np.uint8]) -> None:
        """Put ids in, given as the rows of an array of their bytes."""
        self.count += len(items)
        words = np.ascontiguousarray(items[:, :16]).view(_WORD)
        bits = np.frombuffer(self._bits, np.uint8)
        # Double hashing: the two halves of an id make all its places.
        for number in range(self._hashes):
            places = ((words[:, 0] >> np.uint64(1)) + np.uint64(number) * (words[:, 1] >> np.uint64(8))) % np.uint64(
                self._size
            )
            np.bitwise_or.at(bits, places >> np.uint64(3), np.left_shift(1, places & np.uint64(7)).astype(np.uint8))

    def surely_lacks(self, item: bytes) -> bool:
        """Tell whether an id was never put in; False says nothing."""
        return not all(self._bits[place >> 3] >> (place & 7) & 1 for place in self._places(item))

    def _places(self, item: bytes) -> list[int]:
        first, step = int.from_bytes(item[:8], "little") >> 1, int.from_bytes(item[8:16], "little") >> 8
        return [(first + number * step) % self._size for number in range(self._hashes)]


class Absent:
    """What is surely absent from a column of ids, once it was asked often enough to pay for reading the column.

    Touched only by the thread that holds the connection, and dropped with it: nobody else can write meanwhile.
    """

    def __init__(self, query: str) -> None:
        self._query = query
        self._asked = 0
        self._filter: BloomFilter | None = None

    def surely(self, con: duckdb.DuckDBPyConnection, item: bytes) -> bool:
        """Tell whether an id is surely not in the column; False says nothing."""
        self._asked += 1
        if self._filter is None:
            if self._asked < FEWEST or self._asked * WORTH_IT < scalar(
                con.execute(f"SELECT count(*) FROM ({self._query})")
            ):
                return False
            self._filter = of_column(con.sql(self._query).to_arrow_table().column(0))
        return self._filter.surely_lacks(item)

    def add(self, items: Iterable[bytes]) -> None:
        """Note ids that come into the column; where they outgrow the filter it is made anew."""
        if self._filter is not None:
            for each in items:
                self._filter.add(each)
            if self._filter.count > self._filter.capacity:
                self._filter = None

    def forget(self) -> None:
        """Drop what is known, as the column may change in other ways."""
        self._filter, self._asked = None, 0


def of_column(column: Any, *, room: float = 2.0) -> BloomFilter:
    """Return the filter of an Arrow column of ids of equal length, with room for as many more as `room` says."""
    total = len(column)
    found = BloomFilter(max(1 << 12, int(total * room)))
    for chunk in column.chunks:
        if len(chunk):
            _, offsets, data = chunk.buffers()
            edges = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            ids = np.frombuffer(data, np.uint8)[int(edges[0]) : int(edges[-1])]
            found.add_all(ids.reshape(len(chunk), -1))
    return found
