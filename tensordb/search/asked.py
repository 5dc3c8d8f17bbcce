"""The queries of a search in the forms that comparing needs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensordb.search.query import Vectors

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Asked:
    """Query vectors, ``[queries, elements]``, with what is needed of them for every block.

    Attributes:
        vectors: In float64, as given.
        narrow: In float32.
        norms: L2 norm of each.
        squares: Their squares.
        near_one: Each times a power of two that brings its largest element near 1, so that no square overflows.
        powers: These powers.
        near_one_norms: L2 norm of each of these.
    """

    vectors: Vectors
    narrow: NDArray[np.float32]
    norms: Floats
    squares: Floats
    near_one: Vectors
    powers: Floats
    near_one_norms: Floats

    @classmethod
    def of(cls, vectors: Vectors) -> Asked:
        """Return queries in all their forms."""
        powers = power_near_one(np.abs(vectors).max(axis=1))
        near_one = vectors * powers[:, None]
        near_norms = np.sqrt(np.square(near_one).sum(axis=1))
        with np.errstate(over="ignore"):
            norms = near_norms / powers
            return cls(vectors, vectors.astype(np.float32), norms, np.square(norms), near_one, powers, near_norms)

    def part(self, begin: int, end: int) -> Asked:
        """Return some of the queries."""
        if begin == 0 and end >= len(self.vectors):
            return self
        return Asked(*(getattr(self, each.name)[begin:end] for each in fields(self)))


def power_near_one(largest: NDArray[Any]) -> Floats:
    """Return the powers of two that bring numbers between 0.5 and 1, as far as exponents reach; for 0 the largest."""
    exponents = np.where(largest > 0, -np.frexp(largest.astype(np.float64))[1], 1000)
    return np.asarray(np.ldexp(1.0, np.clip(exponents, -1000, 1000)))
