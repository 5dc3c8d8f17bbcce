"""From the parts of a plan to blocks of vectors: what is kept, else decoded, and never more than a part at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from tensordb.catalog.records import RecordRow
from tensordb.datasets import lookup
from tensordb.engine import Database
from tensordb.errors import FormatError, IntegrityError
from tensordb.search.blocks import Block, BlockCache, block_of
from tensordb.search.plan import Part

_WORTH_WHOLE = 32
"""A page is decoded whole, and kept, when one of so many of its rows is wanted: by then single rows cost as much."""

Ints = NDArray[np.int64]


class BlockReader:
    """Reads the blocks of one search."""

    def __init__(self, db: Database, cache: BlockCache, name: str) -> None:
        self._db = db
        self._cache = cache
        self._name = name
        self._search = cache.begin(db.payloads.released)

    def blocks(self, parts: list[Part]) -> Iterator[tuple[Block, Ints]]:
        """Yield blocks, each with the sequence numbers of its rows; what was deleted meanwhile is left out."""
        for part in parts:
            block = self._kept(part)
            if block is None:
                yield from self._read(part)
            else:
                yield _picked(block, part)

    def _kept(self, part: Part) -> Block | None:
        block = self._cache.get(part.key, self._search)
        if block is None or block.place is None:
            return block
        try:
            self._db.payloads.check(block.place)
        except IntegrityError:  # to read it anew says what is wrong, and with which record
            self._cache.forget(part.key)
            return None
        return block

    def _read(self, part: Part) -> Iterator[tuple[Block, Ints]]:
        if part.rows is not None:
            block = self._page(part)
            if block is not None:
                yield _picked(block, part)
                return
        rows, stack = self._records(part.numbers)
        if not rows:
            return
        block = block_of(stack)
        numbers = np.array([row.seq for row in rows], np.int64)
        if part.rows is None and len(rows) == len(part.numbers):
            self._cache.put(part.key, block, self._search)
        yield block, numbers

    def _page(self, part: Part) -> Block | None:
        """Decode a page, and keep it; None if it is not worth while, is no longer there, or cannot be decoded whole."""
        with self._db.catalog.read() as con:
            known = self._db.catalog.known
            found = known.by_sequence(con, known.dataset(con, self._name), part.numbers[:1].tolist())
            if not found or found[0].object_id != part.key or found[0].page_row is None:
                return None
            located = self._db.reader.locate(con, self._name, found)
        assert part.rows is not None
        source = located.sources[found[0].source]
        if len(part.rows) * _WORTH_WHOLE < source.reader.spec.shape[0]:
            return None
        try:
            stack, aliases = self._db.reader.whole(located)
        except (IntegrityError, FormatError):
            return None  # rows that are wanted may be sound, and one that is not has a name
        block = block_of(stack, place=source.location if aliases else None)
        self._cache.put(part.key, block, self._search)
        return block

    def _records(self, numbers: Ints) -> tuple[list[RecordRow], torch.Tensor]:
        """Decode records one by one, or as rows of their pages."""
        located = lookup.locate(self._db, self._name, numbers)
        if not located.rows:
            return [], torch.empty(0)
        return list(located.rows), torch.stack(self._db.reader.tensors(located))


def _picked(block: Block, part: Part) -> tuple[Block, Ints]:
    """Return the rows of a block that records name, and their numbers."""
    if part.rows is None or (part.is_run and len(part.rows) == len(block.rows)):
        return block, part.numbers
    return block.take(part.rows), part.numbers
