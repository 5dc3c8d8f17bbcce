"""Scores of pairs of a row and a query in float64, each pair by itself.

A score depends on nothing but the two vectors, whatever block they lie in and whatever else is asked: equal vectors
have equal scores.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tensordb.search.asked import Asked, Floats, power_near_one
from tensordb.search.blocks import Rows
from tensordb.search.query import Metric

_COLUMNS = 1 << 16
"""Elements of a pair that are in memory at a time; sums are taken in this order."""
_PAIRS_NBYTES = 8 << 20
"""Float64 bytes of pairs that are scored at a time, and at least one pair's."""

Ints = NDArray[np.int64]


def ranks_of(metric: Metric, rows: Rows, places: Ints, asked: Asked, which: Ints) -> Floats:
    """Return the rank of each pair, larger for what is nearer: cosine, dot product, or the negative distance."""
    found = np.empty(len(places))
    size = max(1, _PAIRS_NBYTES // (8 * min(rows.shape[1], _COLUMNS)))
    rank = _distances if metric == "l2" else _products
    for begin in range(0, len(places), size):
        part = slice(begin, begin + size)
        found[part] = rank(metric, rows, places[part], asked, which[part])
    return found


def _products(metric: Metric, rows: Rows, places: Ints, asked: Asked, which: Ints) -> Floats:
    # Float64 holds the squares of what float32 holds; powers of two change no bit of what they scale.
    powers = np.ones(len(places)) if rows.dtype == np.float32 else _powers(rows, places)
    total, square = np.zeros(len(places)), np.zeros(len(places))
    for part in _columns(rows):
        row = rows[places, part].astype(np.float64)
        row *= powers[:, None]
        total += (row * asked.near_one[which, part]).sum(axis=1)
        if metric == "cosine":
            square += np.square(row).sum(axis=1)
    if metric == "dot":
        return total / powers / asked.powers[which]
    scale = np.sqrt(square) * asked.near_one_norms[which]
    return np.clip(np.divide(total, scale, out=np.zeros_like(total), where=scale > 0), -1.0, 1.0)


def _distances(metric: Metric, rows: Rows, places: Ints, asked: Asked, which: Ints) -> Floats:
    powers = np.minimum(_powers(rows, places), asked.powers[which])
    total = np.zeros(len(places))
    for part in _columns(rows):
        row = rows[places, part].astype(np.float64) * powers[:, None]
        total += np.square(row - asked.vectors[which, part] * powers[:, None]).sum(axis=1)
    return -np.sqrt(total) / powers


def _powers(rows: Rows, places: Ints) -> Floats:
    largest = np.zeros(len(places))
    for part in _columns(rows):
        largest = np.maximum(largest, np.abs(rows[places, part]).max(axis=1))
    return power_near_one(largest)


def _columns(rows: Rows) -> Iterator[slice]:
    for begin in range(0, rows.shape[1], _COLUMNS):
        yield slice(begin, begin + _COLUMNS)
