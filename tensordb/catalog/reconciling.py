"""Making the tables of a catalog agree again after rows of some of them were lost.

Invariant: what every row names is there afterwards, but for objects, whose absence `verify` finds and tells by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb

from tensordb.catalog import connection, schema
from tensordb.catalog.failures import translated
from tensordb.catalog.objects import NewObject
from tensordb.catalog.rows import first, run


def reconcile(path: Path, found: Sequence[NewObject] = ()) -> list[str]:
    """Make the tables of a catalog agree that nobody uses.

    Args:
        path: The catalog; it is brought up to date first.
        found: Objects that are there, some of which its table may have lost.

    Returns:
        What is lost beside the rows that were, a sentence for each checkpoint.
    """
    with translated("making the catalog's tables agree"):
        return _reconcile(path, found)


def _reconcile(path: Path, found: Sequence[NewObject]) -> list[str]:
    con = connection.open_file(path, writable=True)
    try:
        schema.prepare(con, writable=True)
        marks = ", ".join("?" * len(NewObject._fields))
        for each in found:
            run(con, f"INSERT OR IGNORE INTO tensordb.objects VALUES ({marks})", list(each))
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
        return [f"the checkpoint of run {run!r}, step {step}: not all rows of its tensors" for run, step, _ in broken]
    finally:
        con.close()


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
