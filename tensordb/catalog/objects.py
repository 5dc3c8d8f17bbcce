"""SQL for the table of objects: where each payload is, how much names it, and what was applied to it.

A reference is a record, a tensor or the document of a checkpoint, a weight or delta, or another object that is stored
as a difference from this one.

What only a record's row holds inline has no row here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import duckdb
import numpy as np

from tensordb.catalog import deltas
from tensordb.catalog.rows import registered, run, scalar

OBJECT_ID_NBYTES = 16
FEW_IDS = 20_000
_FEW = 4
"""Objects up to which a statement each is faster than an Arrow table."""


class ObjectRow(NamedTuple):
    """Where an object's payload is."""

    object_id: bytes
    stored_nbytes: int
    segment: int
    position: int


class NewObject(NamedTuple):
    """An object about to be named; the fields are the table's columns in order.

    Attributes:
        refs: How many references this write brings.
        segment: Segment that holds the payload.
        position: Byte offset of the payload in its segment.
    """

    object_id: bytes
    content_id: bytes
    refs: int
    raw_nbytes: int
    stored_nbytes: int
    compression: str
    quantization: str
    relative_l2: float
    max_abs: float
    segment: int
    position: int


_LOCATION = "object_id, stored_nbytes, segment, position"


def fetch(con: duckdb.DuckDBPyConnection, object_ids: Sequence[bytes]) -> dict[bytes, ObjectRow]:
    """Return the objects of these ids; ids that no object has are left out."""
    if len(object_ids) == 1:
        found = run(con, f"SELECT {_LOCATION} FROM tensordb.objects WHERE object_id = ?", [object_ids[0]])
    else:
        found = con.execute(
            f"SELECT {_LOCATION} FROM tensordb.objects WHERE object_id IN (SELECT unnest(?::BLOB[]))",
            [list(object_ids)],
        )
    return {row[0]: ObjectRow(*row) for row in found.fetchall()}


def named_by(con: duckdb.DuckDBPyConnection, table: str, limit: int) -> dict[bytes, ObjectRow]:
    """Return up to `limit` objects that a record table names."""
    rows = con.execute(
        f"SELECT {_LOCATION} FROM tensordb.objects WHERE object_id IN (SELECT object_id FROM {table}) LIMIT {limit}"
    ).fetchall()
    return {row[0]: ObjectRow(*row) for row in rows}


def existing(con: duckdb.DuckDBPyConnection, object_ids: Sequence[bytes]) -> set[bytes]:
    """Return which of these objects are stored."""
    found = con.execute(
        "SELECT object_id FROM tensordb.objects WHERE object_id IN (SELECT unnest(?::BLOB[]))", [list(object_ids)]
    )
    return {row[0] for row in found.fetchall()}


def few(con: duckdb.DuckDBPyConnection) -> set[bytes] | None:
    """Return the ids of all objects, None when there are more than `FEW_IDS`."""
    found = con.execute(f"SELECT object_id FROM tensordb.objects LIMIT {FEW_IDS + 1}").fetchall()
    return {object_id for (object_id,) in found} if len(found) <= FEW_IDS else None


def add(con: duckdb.DuckDBPyConnection, new: Sequence[NewObject]) -> None:
    """Insert objects that are not stored yet; DuckDB raises ConstraintException for one that is."""
    if len(new) <= _FEW:
        marks = ", ".join("?" * len(NewObject._fields))
        for each in new:
            run(con, f"INSERT INTO tensordb.objects VALUES ({marks})", list(each))
        return
    from tensordb.catalog import arrow  # loading pyarrow takes longer than all the rest of tensordb

    with registered(con, "incoming_objects", arrow.objects_table(new)):
        con.execute("INSERT INTO tensordb.objects FROM incoming_objects")


def add_references(con: duckdb.DuckDBPyConnection, counts: Mapping[bytes, int]) -> None:
    """Count more records that name objects; negative numbers take references away."""
    con.execute(
        "UPDATE tensordb.objects SET refs = refs + more.n "
        "FROM (SELECT unnest(?::BLOB[]) AS id, unnest(?::BIGINT[]) AS n) more WHERE objects.object_id = more.id",
        [list(counts), list(counts.values())],
    )


def release(con: duckdb.DuckDBPyConnection, counts: Mapping[bytes, int]) -> int:
    """Take references away, and delete the objects that nothing names any more, with the bases only they needed.

    Returns:
        The stored bytes of what was deleted.
    """
    freed = 0
    while counts:
        add_references(con, {object_id: -count for object_id, count in counts.items()})
        gone = con.execute(
            "DELETE FROM tensordb.objects WHERE refs <= 0 AND object_id IN (SELECT unnest(?::BLOB[])) "
            "RETURNING object_id, stored_nbytes",
            [list(counts)],
        ).fetchall()
        freed += sum(stored_nbytes for _, stored_nbytes in gone)
        counts = deltas.remove(con, [object_id for object_id, _ in gone]) if gone else {}
    return freed


def freed_by(con: duckdb.DuckDBPyConnection, counts: Mapping[bytes, int]) -> int:
    """Return the stored bytes that `release` would delete, and change nothing."""
    freed, taken, asked = 0, Counter(counts), dict(counts)
    while asked:
        rows = con.execute(
            "SELECT object_id, refs, stored_nbytes, base_id FROM tensordb.objects LEFT JOIN tensordb.deltas "
            "USING (object_id) WHERE object_id IN (SELECT unnest(?::BLOB[]))",
            [list(asked)],
        ).fetchall()
        gone = [row for row in rows if taken[row[0]] >= row[1]]
        freed += sum(stored_nbytes for _, _, stored_nbytes, _ in gone)
        asked = Counter(base_id for _, _, _, base_id in gone if base_id is not None)
        taken.update(asked)
    return freed


def in_segment(con: duckdb.DuckDBPyConnection, segment: int) -> list[ObjectRow]:
    """Return the objects whose payloads are in a segment, in the order of their places."""
    rows = con.execute(
        f"SELECT {_LOCATION} FROM tensordb.objects WHERE segment = ? ORDER BY position", [segment]
    ).fetchall()
    return [ObjectRow(*row) for row in rows]


def places(con: duckdb.DuckDBPyConnection) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    """Return `segment`, `position` and `stored_nbytes` of all objects, a column each, in the order of their places."""
    text = "SELECT segment, position, stored_nbytes FROM tensordb.objects ORDER BY segment, position"
    return {name: np.asarray(column, np.int64) for name, column in con.execute(text).fetchnumpy().items()}


def live_nbytes(con: duckdb.DuckDBPyConnection) -> dict[int, int]:
    """Return the bytes of live payloads in each segment."""
    rows = con.execute("SELECT segment, sum(stored_nbytes) FROM tensordb.objects GROUP BY segment").fetchall()
    return {segment: int(total) for segment, total in rows}


def move(con: duckdb.DuckDBPyConnection, found: Sequence[ObjectRow], places: Sequence[tuple[int, int]]) -> int:
    """Point objects to new (segment, position) places.

    Returns:
        How many were still where they had been found: the others were deleted or moved meanwhile, and stay as they are.
    """
    count = con.execute(
        "UPDATE tensordb.objects SET segment = moved.segment, position = moved.position "
        "FROM (SELECT unnest(?::BLOB[]) AS object_id, unnest(?::BIGINT[]) AS old_segment, "
        "unnest(?::BIGINT[]) AS old_position, unnest(?::BIGINT[]) AS segment, unnest(?::BIGINT[]) AS position) moved "
        "WHERE objects.object_id = moved.object_id AND objects.segment = moved.old_segment "
        "AND objects.position = moved.old_position",
        [
            [row.object_id for row in found],
            [row.segment for row in found],
            [row.position for row in found],
            [segment for segment, _ in places],
            [position for _, position in places],
        ],
    )
    return int(scalar(count))


class Total(NamedTuple):
    """Sums over the objects of one compression and quantization; errors are the worst."""

    compression: str
    quantization: str
    objects: int
    records: int
    original_nbytes: int
    stored_nbytes: int
    relative_l2: float
    max_abs: float


def totals(con: duckdb.DuckDBPyConnection, tables: Sequence[str]) -> list[Total]:
    """Return the sums over the objects that the records of these tables name, each object counted once.

    `original_nbytes` is what the records' tensors take raw: one that is stored once for two records counts twice.
    """
    if not tables:
        return []
    named = " UNION ALL ".join(f"SELECT object_id, spec_id FROM {table} WHERE payload IS NULL" for table in tables)
    rows = con.execute(f"""
        WITH named AS (
            SELECT r.object_id, count(*) AS records, sum(s.nbytes) AS nbytes
            FROM ({named}) r JOIN tensordb.specs s USING (spec_id) GROUP BY r.object_id)
        SELECT o.compression, o.quantization, count(*), sum(n.records), sum(n.nbytes), sum(o.stored_nbytes),
               max(o.relative_l2), max(o.max_abs)
        FROM named n JOIN tensordb.objects o USING (object_id)
        GROUP BY o.compression, o.quantization ORDER BY sum(o.stored_nbytes) DESC""").fetchall()
    return [
        Total(c, q, int(o), int(r), int(raw), int(stored), l2, worst) for c, q, o, r, raw, stored, l2, worst in rows
    ]
