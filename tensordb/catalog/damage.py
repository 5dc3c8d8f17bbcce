"""SQL for the payloads that were found damaged: what is stored from then on does not rely on them.

A mark is of a place. An object whose payload is elsewhere by now is not marked any more, and the mark of one that was
deleted means nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import duckdb

from tensordb.catalog.objects import NewObject

_PLACES_OF = """
    (SELECT o.segment, o.position FROM tensordb.objects o WHERE o.object_id IN (SELECT unnest(?::BLOB[]))) found"""


def mark(con: duckdb.DuckDBPyConnection, damaged: Collection[bytes], sound: Collection[bytes]) -> None:
    """Mark where these objects are, and take the marks of sound ones away."""
    if sound:
        con.execute(
            f"DELETE FROM tensordb.damaged USING {_PLACES_OF} "
            "WHERE damaged.segment = found.segment AND damaged.position = found.position",
            [list(sound)],
        )
    if damaged:
        con.execute(f"INSERT OR IGNORE INTO tensordb.damaged SELECT DISTINCT * FROM {_PLACES_OF}", [list(damaged)])


def contents(con: duckdb.DuckDBPyConnection, object_ids: Collection[bytes]) -> dict[bytes, bytes]:
    """Return the content id of each of these objects that is stored."""
    rows = con.execute(
        "SELECT object_id, content_id FROM tensordb.objects WHERE object_id IN (SELECT unnest(?::BLOB[]))",
        [list(object_ids)],
    )
    return dict(rows.fetchall())


def marked(con: duckdb.DuckDBPyConnection) -> dict[bytes, bytes]:
    """Return the content id of each object whose payload is marked."""
    rows = con.execute(
        "SELECT o.object_id, o.content_id FROM tensordb.damaged d "
        "JOIN tensordb.objects o ON o.segment = d.segment AND o.position = d.position"
    )
    return dict(rows.fetchall())


def replace(con: duckdb.DuckDBPyConnection, sound: Sequence[NewObject]) -> None:
    """Have objects that are there be what these rows say, but for their contents and references."""
    for each in sound:
        con.execute(
            "UPDATE tensordb.objects SET raw_nbytes = ?, stored_nbytes = ?, compression = ?, quantization = ?, "
            "relative_l2 = ?, max_abs = ?, segment = ?, position = ? WHERE object_id = ?",
            [*each[3:], each.object_id],
        )
