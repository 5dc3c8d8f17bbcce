"""One tier of a cache: values under keys, of bounded bytes, the least recently used one going first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Tier(Generic[Value]):
    """Not safe for threads by itself: the cache around it has the lock.

    Attributes:
        limit: Most bytes.
        beside: Bytes counted for each entry beside its own, for the objects that hold it.
        nbytes: Bytes there are.
        evictions: How many entries had to go.
    """

    def __init__(self, limit: int, beside: int) -> None:
        self.limit = limit
        self.beside = beside
        self.nbytes = 0
        self.evictions = 0
        self._entries: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def get(self, key: Hashable) -> Value | None:
        """Return a value, which is the most recently used one then; None when it is not here."""
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0]

    def fits(self, nbytes: int) -> bool:
        """Tell whether a value may be kept: one that takes more than a quarter of all would drive out the others."""
        return (nbytes + self.beside) * 4 <= self.limit

    def put(self, key: Hashable, value: Value, nbytes: int) -> list[Value]:
        """Keep a value that fits; return those that had to go for it, the least recently used first."""
        old = self._entries.pop(key, None)
        self.nbytes += nbytes + self.beside - (0 if old is None else old[1])
        self._entries[key] = value, nbytes + self.beside
        gone = []
        while self.nbytes > self.limit:
            _, (dropped, size) = self._entries.popitem(last=False)
            self.nbytes -= size
            gone.append(dropped)
        self.evictions += len(gone)
        return gone

    def clear(self) -> None:
        """Drop everything, and count from zero."""
        self._entries = OrderedDict()
        self.nbytes = self.evictions = 0
