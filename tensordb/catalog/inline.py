"""The small payloads that lie in the rows of one dataset's records, and how equal ones come to share an object.

What is remembered here spares an insert the question whether an equal tensor is stored already. It knows all that lie
inline in the dataset, and of the small objects in segments the first `MOST_NAMED`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import duckdb

from tensordb.catalog.datasets import DatasetRow
from tensordb.catalog.ids import generated_id_sql
from tensordb.catalog.rows import run

MAX_NBYTES = 8 << 10
"""A payload up to this size may lie in its record's row: there the column and a segment cost the same."""
MAX_TOTAL = 16 << 20
"""Limit of a dataset's inline payloads together, so that the catalog stays small; `compact` moves them away."""
MOST_NAMED = 20_000


class InlineRow(NamedTuple):
    """A record that holds its payload; `nbytes` is the raw size of its tensor."""

    seq: int
    record_id: str
    object_id: bytes
    payload: bytes
    nbytes: int


@dataclass
class InlinePayloads:
    """What is known of a dataset's small payloads.

    Attributes:
        places: Sequence number of the record that holds an object inline.
        named: Small objects that are in segments.
        nbytes: Bytes of all inline payloads.
    """

    places: dict[bytes, int]
    named: set[bytes]
    nbytes: int

    def has_room(self, nbytes: int) -> bool:
        """Tell whether a payload of this size may be added."""
        return nbytes <= MAX_NBYTES and self.nbytes + nbytes <= MAX_TOTAL

    def add(self, object_id: bytes, seq: int, nbytes: int) -> None:
        """Note a payload that is being inserted with its record."""
        self.places[object_id] = seq
        self.nbytes += nbytes

    def take_out(self, object_id: bytes, nbytes: int) -> None:
        """Note that an object went from its record's row to a segment."""
        del self.places[object_id]
        self.named.add(object_id)
        self.nbytes -= nbytes


def payloads_of(con: duckdb.DuckDBPyConnection, row: DatasetRow) -> InlinePayloads:
    """Return what there is of a dataset's small payloads."""
    text = f"SELECT object_id, seq, octet_length(payload) FROM {row.table} WHERE payload IS NOT NULL"
    found = run(con, text).fetchall()
    small = f"SELECT object_id FROM tensordb.objects WHERE stored_nbytes <= {MAX_NBYTES} LIMIT {MOST_NAMED}"
    named = {object_id for (object_id,) in run(con, small).fetchall()}
    places = {object_id: seq for object_id, seq, _ in found}
    return InlinePayloads(places, named, sum(nbytes for _, _, nbytes in found))


def rows_of(
    con: duckdb.DuckDBPyConnection, row: DatasetRow, *, after: int = -1, limit: int | None = None
) -> list[InlineRow]:
    """Return records with inline payloads by sequence number, up to `limit` of them behind `after`."""
    record_id = f"coalesce(r.record_id, {generated_id_sql('r.seq', row.nonce)})"
    found = con.execute(
        f"SELECT r.seq, {record_id}, r.object_id, r.payload, s.nbytes FROM {row.table} r "
        "JOIN tensordb.specs s USING (spec_id) WHERE r.payload IS NOT NULL AND r.seq > ? "
        f"ORDER BY r.seq{'' if limit is None else f' LIMIT {limit}'}",
        [after],
    )
    return [InlineRow(*each) for each in found.fetchall()]


def take_out(con: duckdb.DuckDBPyConnection, row: DatasetRow, records: Sequence[tuple[int, bytes]]) -> set[int]:
    """Have records name their objects instead of holding them; return the numbers of those that were still there.

    Args:
        con: The connection of a write block.
        row: Their dataset.
        records: Sequence number and object of each: the number alone may be another record's by now.
    """
    found = con.execute(
        f"UPDATE {row.table} SET payload = NULL "
        "FROM (SELECT unnest(?::BIGINT[]) AS seq, unnest(?::BLOB[]) AS object_id) taken "
        f"WHERE {row.table}.payload IS NOT NULL AND {row.table}.seq = taken.seq "
        f"AND {row.table}.object_id = taken.object_id RETURNING {row.table}.seq",
        [[seq for seq, _ in records], [object_id for _, object_id in records]],
    )
    return {seq for (seq,) in found.fetchall()}
