"""Exact search: the parts of a dataset are compared one after the other, and the best of each query are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tensordb import tensors
from tensordb.catalog import records, specs
from tensordb.catalog.places import Places
from tensordb.catalog.records import Selection
from tensordb.datasets import lookup, queries
from tensordb.datasets.lookup import Params
from tensordb.datasets.record import Record
from tensordb.engine import Database
from tensordb.errors import InvalidInputError
from tensordb.search import query as asking
from tensordb.search.asked import Asked
from tensordb.search.best import Best, Floats, Ints
from tensordb.search.blocks import Block, BlockCache
from tensordb.search.comparing import doubt_of, keys_at, keys_of
from tensordb.search.plan import Part, parts_of
from tensordb.search.query import Metric, Query
from tensordb.search.reading import BlockReader
from tensordb.search.result import Hit, SearchResult
from tensordb.search.scoring import ranks_of

_KEYS = 1 << 20
"""Comparisons that are in memory at a time."""
_PLANS = 8


class Searcher:
    """Searches the datasets of one database, and keeps decoded blocks within a number of bytes for the next time."""

    def __init__(self, db: Database, cache: BlockCache | None = None) -> None:
        self.cache = cache or BlockCache()
        self._db = db
        self._plans: dict[str, tuple[Places, int, list[Part]]] = {}

    def search(
        self, name: str, query: Any, k: int, metric: str, where: str | None, params: Params
    ) -> SearchResult | list[SearchResult]:
        """Return the records nearest to a vector, or to each of a stack of vectors."""
        wanted = asking.checked(query, metric)
        most = lookup.check_count(k, "k")
        parts = self._parts(name, wanted, queries.selection(where, params))
        found = self._found(name, parts if most else [], wanted, most)
        by_number = self._records(name, found)
        results = [
            SearchResult(
                [Hit(by_number[number], score) for number, score in each if number in by_number],
                dataset=name,
                metric=wanted.metric,
            )
            for each in found
        ]
        return results[0] if wanted.is_single else results

    def _parts(self, name: str, query: Query, selection: Selection) -> list[Part]:
        """Return what has to be compared; raise InvalidInputError for a record of another shape."""
        elements = query.vectors.shape[1]
        with self._db.catalog.read() as con:
            row = self._db.catalog.known.dataset(con, name)
            places = self._db.catalog.known.places(con, row)
            if selection.where is None:
                known = self._plans.get(name)
                if known is not None and known[0] is places and known[1] == elements:
                    return known[2]
            else:
                places = places.part(records.matching(con, row, selection))
            found = specs.fetch(con, np.unique(places.spec_ids).tolist())
            for number, spec in found.items():
                if spec.shape != (elements,) or spec.dtype.startswith("complex"):
                    first = places.numbers[np.argmax(places.spec_ids == number)]
                    odd = records.by_sequence(con, row, [int(first)])[0]
                    raise InvalidInputError(
                        f"record {odd.record_id!r} of dataset {name!r} is {spec.dtype}{list(spec.shape)}, which cannot "
                        f"be compared with a query of {elements} real numbers; search for what can, such as "
                        f'where="shape = [{elements}]"'
                    )
        parts = parts_of(places, {number: tensors.nbytes_of(spec) for number, spec in found.items()})
        if selection.where is None:
            while len(self._plans) >= _PLANS:
                self._plans.pop(next(iter(self._plans)), None)
            self._plans[name] = places, elements, parts
        return parts

    def _found(self, name: str, parts: list[Part], query: Query, most: int) -> list[list[tuple[int, float]]]:
        """Return sequence number and score of the hits of each query."""
        asked = Asked.of(query.vectors)
        best = Best(len(query.vectors), most)
        odd: list[int] = []  # with NaN or infinities
        for block, numbers in BlockReader(self._db, self.cache, name).blocks(parts):
            if block.finite is not None:
                odd += numbers[~block.finite].tolist()
            with np.errstate(all="ignore"):
                for begin, part in _in_turn(asked, len(block.rows)):
                    _compare(query.metric, block, numbers, part, begin, best, most)
        last = [(number, math.nan) for number in sorted(odd)[:most]]
        return [[*_scored(query.metric, *best.of(at)), *last][:most] for at in range(len(query.vectors))]

    def _records(self, name: str, found: list[list[tuple[int, float]]]) -> dict[int, Record]:
        numbers = np.array(sorted({number for each in found for number, _ in each}), np.int64)
        if not len(numbers):
            return {}
        located = lookup.locate(self._db, name, numbers)
        rows = [row.seq for row in located.rows]
        return dict(zip(rows, lookup.records_of(self._db, located), strict=True))


def _scored(metric: Metric, numbers: Ints, ranks: Floats) -> Iterator[tuple[int, float]]:
    return zip(numbers.tolist(), (0.0 - ranks if metric == "l2" else ranks).tolist(), strict=True)


def _in_turn(asked: Asked, rows: int) -> Iterator[tuple[int, Asked]]:
    """Yield parts of the queries, so small that their comparisons with all rows fit into memory."""
    step = max(1, _KEYS // max(1, rows))
    for begin in range(0, len(asked.vectors), step):
        yield begin, asked.part(begin, begin + step)


def _compare(metric: Metric, block: Block, numbers: Ints, asked: Asked, begin: int, best: Best, most: int) -> None:
    """Take a block into account: score exactly each row that may be among the best."""
    keys, doubt = keys_of(metric, block, asked), doubt_of(metric, block, asked)
    cuts = keys_at(metric, best.cuts[begin : begin + len(keys)], asked)
    open_ = np.flatnonzero(best.cuts[begin : begin + len(keys)] == -np.inf)
    if block.finite is not None:
        keys[:, ~block.finite] = -np.inf
    if len(open_) and keys.shape[1] > most:
        # So many of this block are at least as near as that.
        place = keys.shape[1] - most
        cuts[open_] = np.partition(keys[open_], place, axis=1)[:, place] - doubt[open_]
    least = np.nextafter((cuts - doubt).astype(keys.dtype), keys.dtype.type(-np.inf))
    likely = ~(keys < least[:, None])
    if block.finite is not None:
        likely &= block.finite
    which, places = np.divmod(np.flatnonzero(likely), keys.shape[1])
    if len(which):
        best.add(which + begin, ranks_of(metric, block.rows, places, asked, which), numbers[places])
