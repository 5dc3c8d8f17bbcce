"""Writing a catalog anew from what can be read of it.

Invariant: every row that can be read is copied, with its key; what cannot be is counted by table. DuckDB makes its keys
anew from the rows, so damage in their blocks costs nothing. The tables of indexes on metadata are left empty: they say
nothing that the records do not, and a row missing in one would hide a record.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import duckdb

from tensordb import files
from tensordb.catalog import connection
from tensordb.catalog.failures import translate, translated
from tensordb.catalog.rows import first
from tensordb.errors import IntegrityError

_ROWS_AT_ONCE = 122_880
"""Rows of what DuckDB stores together; within one of them halves are tried."""
_LEAST_ROWS = 2048
"""Rows that DuckDB reads at once: smaller pieces fail or succeed together."""
_ESSENTIAL = {"info", "datasets", "specs", "runs"}
"""Tables without which nobody can tell what the rows of the others mean."""


def rebuild(path: Path) -> list[str]:
    """Copy the tables of a catalog that nobody uses into a new file, which takes its place.

    Returns:
        What could not be copied, a sentence for each table.

    Raises:
        IntegrityError: What cannot be read is the names of tables, or a table without which the others mean nothing.
        StoreError: The file system refuses.
    """
    fresh = path.with_name(f"{path.name}.rebuilt")
    for old in (fresh, connection.log_of(fresh)):
        with contextlib.suppress(FileNotFoundError):
            files.unlink(old)
    with translated("writing the catalog anew"):
        names = _copy_schema(path, fresh)
        lost = {name: rows for name in names if (rows := _copy_table(path, fresh, name))}
        if essential := sorted(_ESSENTIAL & set(lost)):
            raise IntegrityError(f"the catalog's table {essential[0]!r} cannot be read")
        told = [f"up to {rows:,} rows of the catalog's table {name!r}" for name, rows in lost.items()]
        told += _reconcile(fresh) if lost else []
    with contextlib.suppress(FileNotFoundError):
        files.unlink(connection.log_of(path))
    files.rename(fresh, path)
    files.sync_directory(path.parent)
    return told


def _both(path: Path, fresh: Path) -> duckdb.DuckDBPyConnection:
    """Open the old file, without ever writing to it, and the new one beside it."""
    con = connection.open_file(path, writable=True)  # so that its log is read, too
    con.execute("PRAGMA disable_checkpoint_on_shutdown")
    con.execute(f"ATTACH '{str(fresh).replace(chr(39), 2 * chr(39))}' AS fresh")
    return con


def _copy_schema(path: Path, fresh: Path) -> list[str]:
    con = _both(path, fresh)
    try:
        old = first(con.execute("SELECT current_database()"))
        con.execute(f'COPY FROM DATABASE "{old[0] if old else ""}" TO fresh (SCHEMA)')
        rows = con.execute(
            "SELECT table_name FROM duckdb_tables() WHERE database_name = 'fresh' AND schema_name = 'tensordb'"
        )
        return sorted(name for (name,) in rows.fetchall() if not name.startswith("index_"))
    finally:
        con.close()


def _copy_table(path: Path, fresh: Path, name: str) -> int:
    """Copy a table; return how many rows are in the pieces that could not be read."""
    if _copied(path, fresh, name, ""):
        return 0
    lost, pending = 0, list(_ranges(_end(path, fresh, name)))
    while pending:
        begin, end = pending.pop()
        if _copied(path, fresh, name, f"WHERE rowid >= {begin} AND rowid < {end}"):
            continue
        if end - begin > _LEAST_ROWS:
            middle = (begin + end) // 2
            pending += [(middle, end), (begin, middle)]
        else:
            lost += end - begin
    return lost


def _copied(path: Path, fresh: Path, name: str, within: str) -> bool:
    """Copy rows of a table; return whether they could be read. What else goes wrong, such as a full disk, is raised."""
    con = _both(path, fresh)  # opened each time: after an error DuckDB may refuse everything
    try:
        con.execute(f'INSERT INTO fresh.tensordb."{name}" SELECT * FROM tensordb."{name}" {within}')
    except duckdb.Error as error:
        if isinstance(translate(error, "reading"), IntegrityError):
            return False
        raise
    else:
        con.execute("CHECKPOINT fresh")
        return True
    finally:
        con.close()


def _end(path: Path, fresh: Path, name: str) -> int:
    """Return a row number behind every row, for which no column is read."""
    con = _both(path, fresh)
    try:
        found = first(con.execute(f'SELECT max(rowid) FROM tensordb."{name}"'))
        return 0 if found is None or found[0] is None else int(found[0]) + 1
    finally:
        con.close()


def _ranges(rows: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, rows, _ROWS_AT_ONCE):
        yield begin, min(begin + _ROWS_AT_ONCE, rows)


def _reconcile(fresh: Path) -> list[str]:
    """Remove what belongs to rows that were lost, and count anew how often each object is named."""
    con = connection.open_file(fresh, writable=True)
    try:
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
