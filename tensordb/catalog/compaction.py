"""SQL of compaction: which records may share a page, which objects may be encoded anew, and naming what came of them.

Invariant: what a record is pointed to replaces what it was found with, and nothing else: one that was deleted, or
given another object meanwhile, stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import duckdb

from tensordb.catalog.datasets import DatasetRow


class Candidate(NamedTuple):
    """A record that may go into a page, with the place of its object.

    Attributes:
        record_id: The user's id, None when it is generated.
        payload: When it lies inline; the fields after `spec_id` are None then.
    """

    seq: int
    record_id: str | None
    object_id: bytes
    page_row: int | None
    payload: bytes | None
    spec_id: int
    stored_nbytes: int | None
    segment: int | None
    position: int | None


class PageRow(NamedTuple):
    """A page that records of a dataset name.

    Attributes:
        records: Records of the dataset that name it.
        rows: Different rows that they name.
        refs: References of all who name it.
        record_nbytes: Raw bytes of a row.
    """

    object_id: bytes
    records: int
    rows: int
    refs: int
    raw_nbytes: int
    record_nbytes: int
    spec_id: int
    compression: str
    quantization: str
    stored_nbytes: int
    segment: int
    position: int


class WholeRow(NamedTuple):
    """An object that records of one dataset alone name as a whole; `record_id` is as in `Candidate`."""

    object_id: bytes
    seqs: list[int]
    record_id: str | None
    stored_nbytes: int
    segment: int
    position: int


class Move(NamedTuple):
    """A record's object and row as they were found, and as they are to be; rows are None for whole objects."""

    seq: int
    object_id: bytes
    page_row: int | None
    inline: bool
    new_id: bytes
    new_row: int | None


def candidates(
    con: duckdb.DuckDBPyConnection,
    row: DatasetRow,
    pages: Sequence[bytes],
    *,
    after: tuple[int, int],
    most_nbytes: int,
    limit: int,
) -> list[Candidate]:
    """Return records by spec and sequence number that hold their payload, name a small object alone, or one of `pages`.

    Args:
        con: The connection of a block.
        row: Their dataset.
        pages: Objects of which the rows are wanted.
        after: Spec and sequence number of the record before.
        most_nbytes: Raw bytes of the largest whole object.
        limit: How many.
    """
    found = con.execute(
        f"""
        SELECT r.seq, r.record_id, r.object_id, r.page_row, r.payload, r.spec_id, o.stored_nbytes, o.segment, o.position
        FROM {row.table} r LEFT JOIN tensordb.objects o ON o.object_id = r.object_id AND r.payload IS NULL
        WHERE (r.spec_id, r.seq) > (?, ?) AND (
            r.payload IS NOT NULL
            OR (r.page_row IS NULL AND o.refs = 1 AND o.quantization = 'none' AND o.raw_nbytes BETWEEN 1 AND ?
                AND r.object_id NOT IN (SELECT object_id FROM tensordb.deltas))
            OR r.object_id IN (SELECT unnest(?::BLOB[])))
        ORDER BY r.spec_id, r.seq LIMIT {limit}""",
        [*after, most_nbytes, list(pages)],
    )
    return [Candidate(*each) for each in found.fetchall()]


def pages_of(con: duckdb.DuckDBPyConnection, row: DatasetRow) -> list[PageRow]:
    """Return the pages that records of a dataset name."""
    found = con.execute(f"""
        WITH named AS (
            SELECT object_id, spec_id, count(*) AS records, count(DISTINCT page_row) AS rows
            FROM {row.table} WHERE page_row IS NOT NULL GROUP BY object_id, spec_id)
        SELECT n.object_id, n.records, n.rows, o.refs, o.raw_nbytes, s.nbytes, n.spec_id, o.compression, o.quantization,
            o.stored_nbytes, o.segment, o.position
        FROM named n JOIN tensordb.objects o USING (object_id) JOIN tensordb.specs s USING (spec_id)""")
    return [PageRow(*each) for each in found.fetchall()]


def wholes_of(
    con: duckdb.DuckDBPyConnection, row: DatasetRow, *, after: bytes, above_nbytes: int, limit: int
) -> list[WholeRow]:
    """Return lossless objects by id that records of this dataset alone name, but for those that may go into pages."""
    found = con.execute(
        f"""
        SELECT o.object_id, list(r.seq), first(r.record_id), o.stored_nbytes, o.segment, o.position
        FROM {row.table} r JOIN tensordb.objects o USING (object_id)
        WHERE r.payload IS NULL AND r.page_row IS NULL AND o.quantization = 'none' AND o.object_id > ?
            AND (o.refs > 1 OR o.raw_nbytes = 0 OR o.raw_nbytes > ?)
            AND o.object_id NOT IN (SELECT object_id FROM tensordb.deltas)
        GROUP BY ALL HAVING count(*) = o.refs ORDER BY o.object_id LIMIT {limit}""",
        [after, above_nbytes],
    )
    return [WholeRow(*each) for each in found.fetchall()]


def page_records(con: duckdb.DuckDBPyConnection, row: DatasetRow, object_id: bytes) -> list[tuple[int, int]]:
    """Return sequence number and row of the records that name a page, by row."""
    text = f"SELECT seq, page_row FROM {row.table} WHERE object_id = ? AND page_row IS NOT NULL ORDER BY page_row, seq"
    return con.execute(text, [object_id]).fetchall()


def shared_inline(con: duckdb.DuckDBPyConnection, rows: Sequence[DatasetRow]) -> set[bytes]:
    """Return the objects that lie inline in more than one of these datasets, and could share one payload."""
    if len(rows) < 2:
        return set()
    tables = " UNION ALL ".join(f"SELECT DISTINCT object_id FROM {row.table} WHERE payload IS NOT NULL" for row in rows)
    found = con.execute(f"SELECT object_id FROM ({tables}) GROUP BY object_id HAVING count(*) > 1")
    return {object_id for (object_id,) in found.fetchall()}


def repoint(con: duckdb.DuckDBPyConnection, row: DatasetRow, moves: Sequence[Move]) -> set[int]:
    """Have records name other objects, inside a write block; the references are the caller's to count.

    Returns:
        The sequence numbers of those that were as they had been found.
    """
    kinds = ("BIGINT", "BLOB", "INTEGER", "BOOLEAN", "BLOB", "INTEGER")
    columns = ", ".join(f"unnest(?::{kind}[]) AS {name}" for name, kind in zip(Move._fields, kinds, strict=True))
    found = con.execute(
        f"UPDATE {row.table} AS r SET object_id = m.new_id, page_row = m.new_row, payload = NULL "
        f"FROM (SELECT {columns}) m WHERE r.seq = m.seq AND r.object_id = m.object_id "
        "AND r.page_row IS NOT DISTINCT FROM m.page_row AND (r.payload IS NOT NULL) = m.inline RETURNING r.seq",
        [list(column) for column in zip(*moves, strict=True)],
    )
    return {seq for (seq,) in found.fetchall()}
