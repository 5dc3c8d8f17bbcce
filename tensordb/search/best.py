"""The best so far of each query, in memory for the hits alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Best:
    """Records by rank, of equal ranks by insertion.

    Attributes:
        cuts: The rank that a record must reach to be among the best of each query; minus infinity while there is room.
    """

    def __init__(self, queries: int, most: int) -> None:
        self.cuts = np.full(queries, -np.inf)
        self._most = most
        self._which = np.empty(0, np.int64)
        self._ranks = np.empty(0)
        self._numbers = np.empty(0, np.int64)

    def add(self, which: Ints, ranks: Floats, numbers: Ints) -> None:
        """Take records into account: the query of each, its rank, and its sequence number."""
        which, ranks = np.concatenate([self._which, which]), np.concatenate([self._ranks, ranks])
        numbers = np.concatenate([self._numbers, numbers])
        order = np.lexsort((numbers, -ranks, which))
        which, ranks, numbers = which[order], ranks[order], numbers[order]
        place = np.arange(len(which)) - np.searchsorted(which, which)
        last = place == self._most - 1
        self.cuts[which[last]] = ranks[last]
        kept = place < self._most
        self._which, self._ranks, self._numbers = which[kept], ranks[kept], numbers[kept]

    def of(self, query: int) -> tuple[Ints, Floats]:
        """Return sequence numbers and ranks of a query's best, best first."""
        begin, end = np.searchsorted(self._which, [query, query + 1])
        return self._numbers[begin:end], self._ranks[begin:end]
