"""SQL for the table of deltas: which object each one that is stored as a difference is read with.

Invariant: a delta holds one reference to its base, so that a base outlives whatever else named it. A chain is an object
stored by itself and the deltas from it, in the order they were stored; each of them is read with that one base.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import duckdb

from tensordb.catalog.rows import run


class NewDelta(NamedTuple):
    """An object stored as a difference; the fields are the table's columns in order.

    Attributes:
        base_id: Object id of the base.
        length: Deltas in the chain up to this one.
        chain_nbytes: Stored bytes of the chain up to this one.
    """

    object_id: bytes
    base_id: bytes
    length: int
    chain_nbytes: int


class BaseRow(NamedTuple):
    """What an object is a difference from, and where that is."""

    object_id: bytes
    base_id: bytes
    content_id: bytes
    stored_nbytes: int
    segment: int
    position: int


class StoredContent(NamedTuple):
    """An object found by what it holds."""

    content_id: bytes
    object_id: bytes
    stored_nbytes: int


class Chain(NamedTuple):
    """A chain up to one of its objects.

    Attributes:
        key_id: Object that the chain began with, from which all deltas are.
        key_content: Content id of that.
        length: Deltas so far.
        nbytes: Stored bytes of all objects so far.
        last_nbytes: Of the last one.
    """

    key_id: bytes
    key_content: bytes
    length: int
    nbytes: int
    last_nbytes: int


CHAIN_COLUMNS = """coalesce(d.base_id, o.object_id), coalesce(b.content_id, o.content_id), coalesce(d.length, 0),
    coalesce(d.chain_nbytes, o.stored_nbytes), o.stored_nbytes"""
CHAIN_JOINS = """LEFT JOIN tensordb.deltas d ON d.object_id = o.object_id
    LEFT JOIN tensordb.objects b ON b.object_id = d.base_id"""
"""The columns of `Chain`, of the objects called ``o``."""


def add(con: duckdb.DuckDBPyConnection, new: Sequence[NewDelta]) -> None:
    """Insert deltas; the references to their bases are the caller's to count."""
    con.execute(
        "INSERT INTO tensordb.deltas SELECT unnest(?::BLOB[]), unnest(?::BLOB[]), unnest(?::INTEGER[]), "
        "unnest(?::BIGINT[])",
        [list(column) for column in zip(*new, strict=True)],
    )


def remove(con: duckdb.DuckDBPyConnection, object_ids: Sequence[bytes]) -> dict[bytes, int]:
    """Delete the deltas among these objects; return how many of them each base loses."""
    gone = con.execute(
        "DELETE FROM tensordb.deltas WHERE object_id IN (SELECT unnest(?::BLOB[])) RETURNING base_id",
        [list(object_ids)],
    )
    return dict(Counter(base_id for (base_id,) in gone.fetchall()))


def bases_of(con: duckdb.DuckDBPyConnection, object_ids: Sequence[bytes]) -> dict[bytes, BaseRow]:
    """Return the base of each of these objects that has one, and of each of those bases, down to the last."""
    wanted = [list(object_ids)]
    # Most have none, which takes a third of the time to find out.
    if not run(con, "SELECT 1 FROM tensordb.deltas WHERE object_id IN (SELECT unnest(?::BLOB[]))", wanted).fetchall():
        return {}
    rows = con.execute(
        """
        WITH RECURSIVE chain AS (
            SELECT object_id, base_id FROM tensordb.deltas WHERE object_id IN (SELECT unnest(?::BLOB[]))
            UNION
            SELECT d.object_id, d.base_id FROM tensordb.deltas d JOIN chain c ON d.object_id = c.base_id)
        SELECT c.object_id, c.base_id, o.content_id, o.stored_nbytes, o.segment, o.position
        FROM chain c JOIN tensordb.objects o ON o.object_id = c.base_id""",
        wanted,
    ).fetchall()
    return {row[0]: BaseRow(*row) for row in rows}


def chain_of(con: duckdb.DuckDBPyConnection, object_id: bytes) -> Chain | None:
    """Return the chain that ends with an object; None when the object is not stored."""
    row = con.execute(
        f"SELECT {CHAIN_COLUMNS} FROM tensordb.objects o {CHAIN_JOINS} WHERE o.object_id = ?", [object_id]
    ).fetchone()
    return Chain(*row) if row else None


def with_content(con: duckdb.DuckDBPyConnection, content_ids: Sequence[bytes]) -> dict[bytes, StoredContent]:
    """Return an object for each of these contents that is stored, of several one that is stored by itself."""
    rows = con.execute(
        """
        SELECT o.content_id, o.object_id, o.stored_nbytes
        FROM tensordb.objects o LEFT JOIN tensordb.deltas d USING (object_id)
        WHERE o.content_id IN (SELECT unnest(?::BLOB[])) ORDER BY d.object_id IS NOT NULL DESC, o.stored_nbytes DESC""",
        [list(content_ids)],
    ).fetchall()
    return {row[0]: StoredContent(*row) for row in rows}
