"""From tensors to catalog rows.

A payload reaches the disk before, and outside of, the catalog's write block; the block then only names it. What was
appended and never named is an orphan, which `gc` reclaims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import duckdb

from tensordb.catalog import objects
from tensordb.catalog.objects import NewObject
from tensordb.catalog.session import Catalog
from tensordb.encoding.pipeline import EncodedTensor
from tensordb.payloads import Location, PayloadStore

INLINE_NBYTES = 8 << 10
"""A payload up to this size may live in the catalog: there the column and a segment cost the same."""
INLINE_TOTAL = 16 << 20
"""Limit of all inline payloads together, so that the catalog opens in milliseconds."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An encoded tensor on its way into the catalog: `location` is None while its payload is in no segment."""

    encoded: EncodedTensor
    location: Location | None

    @property
    def is_small(self) -> bool:
        """Whether the payload may be inlined."""
        return self.encoded.nbytes <= INLINE_NBYTES


class ObjectWriter:
    """Writes payloads and names them."""

    def __init__(self, catalog: Catalog, payloads: PayloadStore) -> None:
        self._catalog = catalog
        self._payloads = payloads

    def is_stored(self, encoded: EncodedTensor) -> bool:
        """Tell whether an equal object is in the catalog, so that its payload need not be written again."""
        if encoded.nbytes <= INLINE_NBYTES:
            return False
        with self._catalog.read() as con:
            return bool(objects.existing(con, [encoded.object_id]))

    def append(self, encoded: EncodedTensor, *, known: bool = False) -> Stored:
        """Write a payload to a segment, unless it is small enough to be inlined or `known` to be stored."""
        stored = Stored(encoded, None)
        if stored.is_small or known:
            return stored
        location = self._payloads.append(encoded.buffers)
        return Stored(replace(encoded, buffers=()), location)  # what is written need not stay in memory

    def name(
        self,
        con: duckdb.DuckDBPyConnection,
        stored: Sequence[Stored],
        refs: Mapping[bytes, int],
        *,
        guess: bool = False,
    ) -> None:
        """Insert objects into the catalog, inside a write block; equal ones share what is stored already.

        Args:
            con: The block's connection.
            stored: The objects; of equal ones the first is taken.
            refs: How many new records name each of them, by object id.
            guess: Take them for new without a look, which saves a statement. A wrong guess fails the write block
                with DuckDB's ConstraintException.
        """
        unique = {each.encoded.object_id: each for each in reversed(stored)}
        present = set() if guess else objects.existing(con, list(unique))
        if present:
            objects.add_references(con, {key: refs[key] for key in present})
        new = [self._row(con, each, refs[key]) for key, each in unique.items() if key not in present]
        objects.add(con, new)

    def _row(self, con: duckdb.DuckDBPyConnection, stored: Stored, refs: int) -> NewObject:
        encoded, location, payload = stored.encoded, stored.location, None
        if location is None:
            if stored.is_small and self._has_room(con, encoded.nbytes):
                payload = b"".join(encoded.buffers)
            else:  # too much is inline already, or the equal object was deleted since it was seen
                location = self._payloads.append(encoded.buffers)
        applied = encoded.encoding
        return NewObject(
            object_id=encoded.object_id,
            content_id=encoded.content_id,
            refs=refs,
            raw_nbytes=applied.original_nbytes,
            stored_nbytes=encoded.nbytes,
            compression=applied.compression,
            quantization=applied.quantization,
            relative_l2=applied.error.relative_l2,
            max_abs=applied.error.max_abs,
            segment=location.segment if location else None,
            position=location.offset if location else None,
            payload=payload,
        )

    def _has_room(self, con: duckdb.DuckDBPyConnection, nbytes: int) -> bool:
        if self._catalog.known.inline_nbytes(con) + nbytes > INLINE_TOTAL:
            return False
        self._catalog.known.add_inline_nbytes(nbytes)
        return True
