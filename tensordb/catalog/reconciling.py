"""Making the tables of a catalog agree again after rows of some of them were lost.

Invariant: what every row names is there afterwards, but for objects, whose absence `verify` finds and tells by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from tensordb.catalog import connection, datasets, schema
from tensordb.catalog.failures import translated
from tensordb.catalog.objects import NewObject
from tensordb.catalog.rows import first, run


@dataclass(frozen=True)
class Reconciled:
    """What was done.

    Attributes:
        lost: What is lost beside the rows that were, a sentence for each checkpoint.
        unnamed: Segment and position of each object that something named, and nothing does any more, with the name that
            it had in a checkpoint, None where none is known; and of each that was found and that nothing names.
    """

    lost: list[str]
    unnamed: dict[tuple[int, int], str | None]


def reconcile(path: Path, found: Sequence[tuple[NewObject, bytes | None]] = ()) -> Reconciled:
    """Make the tables of a catalog agree that nobody uses.

    Args:
        path: The catalog; it is brought up to date first.
        found: Objects that are there, some of which its tables may have lost, each with the content id of what it is a
            difference from, None for one stored by itself.
    """
    with translated("making the catalog's tables agree"):
        return _reconcile(path, found)


def _reconcile(path: Path, found: Sequence[tuple[NewObject, bytes | None]]) -> Reconciled:
    con = connection.open_file(path, writable=True)
    try:
        schema.prepare(con, writable=True)
        marks = ", ".join("?" * len(NewObject._fields))
        for each, _ in found:
            run(con, f"INSERT OR IGNORE INTO tensordb.objects VALUES ({marks})", list(each))
        _restore_deltas(con, [(each.object_id, base) for each, base in found if base is not None])
        before = _names(con, [each.object_id for each, _ in found])
        broken = con.execute(
            "SELECT r.name, c.step, c.number FROM tensordb.checkpoints c JOIN tensordb.runs r USING (run_id) WHERE "
            "c.tensors <> (SELECT count(*) FROM tensordb.checkpoint_tensors t WHERE t.number = c.number)"
        ).fetchall()
        con.execute("DELETE FROM tensordb.checkpoints WHERE list_contains(?, number)", [[row[2] for row in broken]])
        for name, key, owner in (
            ("checkpoint_tensors", "number", "checkpoints"),
            ("tags", "number", "checkpoints"),
            ("weight_labels", "number", "weights"),
            ("deltas", "object_id", "objects"),
        ):
            con.execute(f"DELETE FROM tensordb.{name} WHERE {key} NOT IN (SELECT {key} FROM tensordb.{owner})")
        there = "SELECT number FROM tensordb.checkpoints"
        con.execute(f"UPDATE tensordb.checkpoints SET parent = NULL WHERE parent NOT IN ({there})")
        _recount(con)
        lost = [f"the checkpoint of run {run!r}, step {step}: not all rows of its tensors" for run, step, _ in broken]
        after = _names(con)
        for row in datasets.fetch_all(con):
            view = "SELECT 1 FROM duckdb_views() WHERE schema_name = 'main' AND view_name = ?"
            if first(con.execute(view, [row.name])) is None:
                datasets.create_view(con, row)
        return Reconciled(lost, {place: name for place, name in before.items() if place not in after})
    finally:
        con.close()


def _names(con: duckdb.DuckDBPyConnection, found: Sequence[bytes] = ()) -> dict[tuple[int, int], str | None]:
    """Return the places of the objects that are named, and of these, with the name of each in a checkpoint."""
    rows = con.execute(
        "SELECT o.segment, o.position, min(t.name) FROM tensordb.objects o "
        "LEFT JOIN tensordb.checkpoint_tensors t USING (object_id) "
        "WHERE o.refs > 0 OR o.object_id IN (SELECT unnest(?::BLOB[])) GROUP BY ALL",
        [list(found)],
    )
    return {(segment, position): name for segment, position, name in rows.fetchall()}


def _restore_deltas(con: duckdb.DuckDBPyConnection, found: Sequence[tuple[bytes, bytes]]) -> None:
    """Insert the deltas that are missing, given as object id and content id of the base, in the order of their places.

    A chain may have been stored in another order: only when a new one begins depends on that.
    """
    if not found:
        return
    con.execute(
        """
        INSERT OR IGNORE INTO tensordb.deltas
        WITH found AS (SELECT unnest(?::BLOB[]) AS object_id, unnest(?::BLOB[]) AS content_id),
            bases AS (
                SELECT content_id, arg_min(object_id, object_id IN (SELECT object_id FROM found)) AS base_id
                FROM tensordb.objects GROUP BY content_id)
        SELECT d.object_id, b.base_id, row_number() OVER chain, o.stored_nbytes + sum(d.stored_nbytes) OVER chain
        FROM found f JOIN tensordb.objects d USING (object_id) JOIN bases b ON b.content_id = f.content_id
            JOIN tensordb.objects o ON o.object_id = b.base_id
        WINDOW chain AS (PARTITION BY b.base_id ORDER BY d.segment, d.position)""",
        [[key for key, _ in found], [base for _, base in found]],
    )


def _recount(con: duckdb.DuckDBPyConnection) -> None:
    tables = con.execute("SELECT table_name FROM duckdb_tables() WHERE table_name LIKE 'records\\_%' ESCAPE '\\'")
    named = [f'SELECT object_id AS id FROM tensordb."{name}" WHERE payload IS NULL' for (name,) in tables.fetchall()]
    named += [
        "SELECT object_id FROM tensordb.checkpoint_tensors",
        "SELECT document_id FROM tensordb.checkpoints",
        "SELECT object_id FROM tensordb.weights",
        "SELECT base_id FROM tensordb.deltas",
    ]
    while True:  # an object that goes may have been the last to need its base
        con.execute(
            "UPDATE tensordb.objects SET refs = coalesce((SELECT count(*) FROM "
            f"({' UNION ALL '.join(named)}) named WHERE named.id = objects.object_id), 0)"
        )
        gone = first(con.execute("DELETE FROM tensordb.objects WHERE refs <= 0"))
        con.execute("DELETE FROM tensordb.deltas WHERE object_id NOT IN (SELECT object_id FROM tensordb.objects)")
        if gone is None or not gone[0]:
            return
