"""SQL for the tables of runs, checkpoints, and tags; `checkpoint_tensors` looks their tensors up.

Invariants: a checkpoint's row and those of its tensors come and go in one transaction, with the references to the
objects that they name. Checkpoint numbers grow with time, and are never given twice.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import duckdb

from tensordb.catalog import high_water
from tensordb.catalog.checkpoint_tensors import TensorRow
from tensordb.catalog.ids import first_sequence
from tensordb.catalog.rows import first, run, scalar
from tensordb.errors import CheckpointNotFoundError
from tensordb.suggesting import listed, meant


class RunRow(NamedTuple):
    """A run: a name for checkpoints that follow each other."""

    run_id: int
    name: str


class RunTotal(NamedTuple):
    """A run with what its checkpoints take; the fields are columns of ``history.runs``."""

    name: str
    checkpoints: int
    latest_step: int | None
    latest_at: dt.datetime | None
    nbytes: int
    added_nbytes: int


class CheckpointRow(NamedTuple):
    """One checkpoint as the catalog knows it.

    Attributes:
        number: Microsecond of its making, which orders checkpoints.
        created_at: UTC without zone.
        parent: Number of the checkpoint before it.
        facts: Packed metrics and metadata, as they were given.
        tags: Names of its tags, sorted.
        tensors: How many tensors it has.
        nbytes: Their raw bytes, each once.
        stored_nbytes: Bytes of the objects that it names.
        added_nbytes: Bytes of those that were new with it.
    """

    number: int
    run: str
    step: int | None
    epoch: float | None
    created_at: dt.datetime
    parent: int | None
    facts: bytes
    tags: list[str]
    tensors: int
    nbytes: int
    stored_nbytes: int
    added_nbytes: int


class NewCheckpoint(NamedTuple):
    """A checkpoint about to be inserted; the fields after `run_id` are as in the table."""

    run_id: int
    step: int | None
    epoch: float | None
    parent: int | None
    metrics: Mapping[str, float]
    metadata: str
    facts: bytes
    document: bytes | None
    document_id: bytes | None
    tensors: int
    nbytes: int
    stored_nbytes: int
    added_nbytes: int


_FIELDS = "c.number, r.name, c.step, c.epoch, c.created_at, c.parent, c.facts"
_SIZES = "c.tensors, c.nbytes, c.stored_nbytes, c.added_nbytes"
_JOINED = "FROM tensordb.checkpoints c JOIN tensordb.runs r USING (run_id)"
_ROW = f"""
    SELECT {_FIELDS},
        coalesce((SELECT list(t.name ORDER BY t.name) FROM tensordb.tags t WHERE t.number = c.number), []), {_SIZES}
    {_JOINED}"""


def run_named(con: duckdb.DuckDBPyConnection, name: str) -> RunRow | None:
    """Return the run of this name."""
    row = first(con.execute("SELECT run_id, name FROM tensordb.runs WHERE name = ?", [name]))
    return RunRow(*row) if row else None


def existing_run(con: duckdb.DuckDBPyConnection, name: str) -> RunRow:
    """Return the run of this name; CheckpointNotFoundError, which names some that there are, when there is none."""
    found = run_named(con, name)
    if found is None:
        raise no_run(con, name, "there is no run")
    return found


def no_run(con: duckdb.DuckDBPyConnection, name: str, what: str) -> CheckpointNotFoundError:
    """Return the error for a name that no run has; `what` begins it."""
    there = [run.name for run in runs(con)]
    return CheckpointNotFoundError(f"{what} {name!r}{meant(name, there)} (runs: {listed(there)})")


def runs(con: duckdb.DuckDBPyConnection) -> list[RunRow]:
    """Return every run, oldest first."""
    return [RunRow(*row) for row in con.execute("SELECT run_id, name FROM tensordb.runs ORDER BY run_id").fetchall()]


def run_totals(con: duckdb.DuckDBPyConnection) -> list[RunTotal]:
    """Return every run with what its checkpoints take, oldest first."""
    rows = con.execute(
        "SELECT run, checkpoints, latest_step, latest_at, nbytes, added_nbytes FROM history.runs "
        "ORDER BY created_at, run"
    )
    return [RunTotal(*row) for row in rows.fetchall()]


def add_run(con: duckdb.DuckDBPyConnection, name: str) -> RunRow:
    """Insert a run."""
    run_id = scalar(con.execute("SELECT coalesce(max(run_id), 0) + 1 FROM tensordb.runs"))
    con.execute("INSERT INTO tensordb.runs VALUES (?, ?, ?)", [run_id, name, _now()])
    return RunRow(run_id, name)


def remove_run(con: duckdb.DuckDBPyConnection, run_id: int) -> None:
    """Delete a run that has no checkpoints."""
    con.execute("DELETE FROM tensordb.runs WHERE run_id = ?", [run_id])


def add(con: duckdb.DuckDBPyConnection, new: NewCheckpoint, tensors: Sequence[TensorRow]) -> int:
    """Insert a checkpoint with its tensors and return its number; the references are the caller's to count."""
    number = _next_number(con)
    con.execute(
        """
        INSERT INTO tensordb.checkpoints
        SELECT ?, ?, ?, ?, ?, ?, map(?::VARCHAR[], ?::DOUBLE[]), ?, ?, ?, ?, ?, ?, ?, ?""",
        [
            number,
            new.run_id,
            new.step,
            new.epoch,
            _now(),
            new.parent,
            list(new.metrics),
            list(new.metrics.values()),
            *new[5:],
        ],
    )
    if tensors:
        con.execute(
            "INSERT INTO tensordb.checkpoint_tensors SELECT ?, unnest(?::INTEGER[]), unnest(?::VARCHAR[]), "
            "unnest(?::BLOB[]), unnest(?::INTEGER[]), unnest(?::DOUBLE[])",
            [number, *(list(column) for column in zip(*tensors, strict=True))],
        )
    return number


def copy(con: duckdb.DuckDBPyConnection, number: int, run_id: int) -> int:
    """Insert a checkpoint once more, as the child that begins another run; the references are the caller's to count."""
    new = _next_number(con)
    con.execute(
        """
        INSERT INTO tensordb.checkpoints
        SELECT ?, ?, step, epoch, ?, number, metrics, metadata, facts, document, document_id, tensors, nbytes,
            stored_nbytes, 0
        FROM tensordb.checkpoints WHERE number = ?""",
        [new, run_id, _now(), number],
    )
    con.execute(
        "INSERT INTO tensordb.checkpoint_tensors SELECT ?, position, name, object_id, spec_id, norm "
        "FROM tensordb.checkpoint_tensors WHERE number = ?",
        [new, number],
    )
    return new


def by_number(con: duckdb.DuckDBPyConnection, numbers: Sequence[int]) -> list[CheckpointRow]:
    """Return the checkpoints of these numbers that exist, oldest first."""
    if len(numbers) == 1:
        return _one(con, numbers[0])
    rows = con.execute(f"{_ROW} WHERE c.number IN (SELECT unnest(?::BIGINT[])) ORDER BY c.number", [list(numbers)])
    return [CheckpointRow(*row) for row in rows.fetchall()]


def _one(con: duckdb.DuckDBPyConnection, number: int) -> list[CheckpointRow]:
    """Return a checkpoint if it exists.

    By the index, which a list of numbers is not looked up in; and in two statements, as to plan the tags beside it
    takes longer than both.
    """
    found = first(run(con, f"SELECT {_FIELDS}, NULL, {_SIZES} {_JOINED} WHERE c.number = ?", [number]))
    if found is None:
        return []
    tags = run(con, "SELECT name FROM tensordb.tags WHERE number = ? ORDER BY name", [number]).fetchall()
    return [CheckpointRow(*found)._replace(tags=[name for (name,) in tags])]


def count(con: duckdb.DuckDBPyConnection, run_id: int | None) -> int:
    """Return how many checkpoints a run has, or all."""
    return int(
        scalar(con.execute("SELECT count(*) FROM tensordb.checkpoints WHERE run_id = coalesce(?, run_id)", [run_id]))
    )


def of_run(con: duckdb.DuckDBPyConnection, run_id: int | None) -> list[CheckpointRow]:
    """Return the checkpoints of a run, or of all, oldest first."""
    if run_id is None:
        rows = con.execute(f"{_ROW} ORDER BY c.number")
    else:
        rows = con.execute(f"{_ROW} WHERE c.run_id = ? ORDER BY c.number", [run_id])
    return [CheckpointRow(*row) for row in rows.fetchall()]


def latest(con: duckdb.DuckDBPyConnection, run_id: int, step: int | None = None) -> int | None:
    """Return the number of a run's newest checkpoint, or of the newest one of a step."""
    if step is None:
        found = con.execute("SELECT max(number) FROM tensordb.checkpoints WHERE run_id = ?", [run_id])
    else:
        found = con.execute(
            "SELECT max(number) FROM tensordb.checkpoints WHERE run_id = ? AND step = ?", [run_id, step]
        )
    number = scalar(found)
    return None if number is None else int(number)


def document(con: duckdb.DuckDBPyConnection, number: int) -> tuple[bytes | None, bytes | None]:
    """Return a checkpoint's document, or the id of the object that holds it."""
    row = first(con.execute("SELECT document, document_id FROM tensordb.checkpoints WHERE number = ?", [number]))
    return (row[0], row[1]) if row else (None, None)


def remove(con: duckdb.DuckDBPyConnection, numbers: Sequence[int]) -> None:
    """Delete checkpoints with their tensors and tags; their objects are the caller's to release."""
    newest = scalar(con.execute("SELECT max(number) FROM tensordb.checkpoints"))
    if newest in numbers:
        high_water.note(con, high_water.CHECKPOINTS, newest)
    for table in ("checkpoint_tensors", "tags", "checkpoints"):
        con.execute(f"DELETE FROM tensordb.{table} WHERE number IN (SELECT unnest(?::BIGINT[]))", [list(numbers)])


def adopt(con: duckdb.DuckDBPyConnection, gone: Mapping[int, int | None]) -> None:
    """Give the children of checkpoints that will be deleted the nearest ancestor that stays.

    Args:
        con: A write block's connection.
        gone: The parent of each checkpoint to be deleted, by number.
    """
    children = con.execute(
        "SELECT number, parent FROM tensordb.checkpoints WHERE parent IN (SELECT unnest(?::BIGINT[]))", [list(gone)]
    ).fetchall()
    moved = {}
    for number, parent in children:
        while parent in gone:
            parent = gone[parent]
        if number not in gone:
            moved[number] = parent
    if moved:
        con.execute(
            "UPDATE tensordb.checkpoints SET parent = moved.parent "
            "FROM (SELECT unnest(?::BIGINT[]) AS number, unnest(?::BIGINT[]) AS parent) moved "
            "WHERE checkpoints.number = moved.number",
            [list(moved), list(moved.values())],
        )


def tagged(con: duckdb.DuckDBPyConnection, run_id: int, tag: str) -> int | None:
    """Return the number of the checkpoint that a tag of a run names."""
    row = first(con.execute("SELECT number FROM tensordb.tags WHERE run_id = ? AND name = ?", [run_id, tag]))
    return row[0] if row else None


def set_tag(con: duckdb.DuckDBPyConnection, run_id: int, tag: str, number: int) -> None:
    """Have a tag of a run name a checkpoint, whatever it named before."""
    con.execute("INSERT OR REPLACE INTO tensordb.tags VALUES (?, ?, ?, ?)", [run_id, tag, number, _now()])


def remove_tag(con: duckdb.DuckDBPyConnection, run_id: int, tag: str) -> None:
    """Delete a tag."""
    con.execute("DELETE FROM tensordb.tags WHERE run_id = ? AND name = ?", [run_id, tag])


def _next_number(con: duckdb.DuckDBPyConnection) -> int:
    newest = scalar(con.execute("SELECT max(number) FROM tensordb.checkpoints"))
    return first_sequence(high_water.above(con, high_water.CHECKPOINTS, newest))


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(tzinfo=None)
