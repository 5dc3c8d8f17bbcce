"""Which checkpoints there are: finding one, the log of a run, tags, forks, deleting.

Invariant: a checkpoint whose parent is deleted gets that one's parent, so that a log has no holes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import duckdb

from tensordb.catalog import checkpoint_tensors, checkpoints, objects
from tensordb.catalog.checkpoints import CheckpointRow, RunRow
from tensordb.catalog.ids import CHECKPOINT_NONCE, sequence_of
from tensordb.checkpoints.checkpoint import Checkpoint, CheckpointList, from_row, metrics_of
from tensordb.checkpoints.requests import RESERVED, check_name, check_step
from tensordb.engine import Database
from tensordb.errors import AlreadyExistsError, CheckpointNotFoundError, InvalidInputError
from tensordb.suggesting import listed, meant

Mode = Literal["min", "max"]


def find(
    con: duckdb.DuckDBPyConnection,
    run_or_id: Any,
    *,
    step: Any = None,
    which: str = "latest",
    metric: str | None = None,
    mode: Mode = "min",
) -> CheckpointRow:
    """Return one checkpoint, inside a catalog block.

    Raises:
        CheckpointNotFoundError: There is none; the message says what there is.
        InvalidInputError: The arguments contradict each other.
    """
    if isinstance(run_or_id, Checkpoint):
        if step is not None or which != "latest":
            raise InvalidInputError(f"{run_or_id!r} is a checkpoint already; give its run with step= or which=")
        return _by_id(con, run_or_id.id)  # not by name: a run may be called like an id
    run = checkpoints.run_named(con, check_name(run_or_id, "run"))
    if run is None:
        if step is not None or which != "latest":
            raise checkpoints.no_run(con, run_or_id, "there is no run")
        return _by_id(con, run_or_id)
    number = check_step(step)
    if number is not None and which != "latest":
        raise InvalidInputError(f"both step={number} and which={which!r} were given; give one")
    if which == "best":
        return best_of(checkpoints.of_run(con, run.run_id), metric, mode, f"run {run.name!r}")
    if metric is not None:
        raise InvalidInputError(f"metric={metric!r} is for which='best'; give both, or none")
    return _of_run(con, run, number, which)


def run_of(con: duckdb.DuckDBPyConnection, name: Any) -> RunRow:
    """Return the run of this name; CheckpointNotFoundError when there is none."""
    return checkpoints.existing_run(con, check_name(name, "run"))


def best_of(rows: Sequence[CheckpointRow], metric: str | None, mode: Any, where: str) -> CheckpointRow:
    """Return the checkpoint with the best value of a metric."""
    return ranked_by(rows, metric, mode, where)[0]


def ranked_by(rows: Sequence[CheckpointRow], metric: str | None, mode: Any, where: str) -> list[CheckpointRow]:
    """Return the checkpoints that have a metric, best first; NaN is none, and of equal ones the newest is best.

    Raises:
        InvalidInputError: The metric is not said, and there is not just one.
        CheckpointNotFoundError: None of them has it.
    """
    if mode not in ("min", "max"):
        raise InvalidInputError(f"mode is {mode!r}; give 'min' or 'max'")
    metrics = [(metrics_of(row), row) for row in rows]
    names = sorted({name for values, _ in metrics for name in values})
    if metric is None:
        if len(names) != 1:
            listed = ", ".join(map(repr, names)) or "none"
            raise InvalidInputError(f"which metric is best is not said (there are: {listed}); give metric=")
        metric = names[0]
    sign = 1 if mode == "min" else -1
    valued = [(sign * values[metric], -row.number, row) for values, row in metrics if _is_number(values.get(metric))]
    if not valued:
        listed = ", ".join(map(repr, names)) or "none"
        raise CheckpointNotFoundError(f"no checkpoint of {where} has a value of {metric!r} (there are: {listed})")
    return [row for *_, row in sorted(valued, key=lambda each: each[:2])]


def list_of(db: Database, run: str | None) -> CheckpointList:
    """Return the checkpoints of a run, or of all runs, oldest first."""
    with db.catalog.read() as con:
        rows = checkpoints.of_run(con, None if run is None else run_of(con, run).run_id)
    return CheckpointList(from_row(row) for row in rows)


def overview(db: Database) -> list[tuple[str, ...]]:
    """Return name, checkpoints, latest step and time, raw and added bytes of each run, oldest first, as text."""
    with db.catalog.read() as con:
        totals = checkpoints.run_totals(con)
    return [
        (
            each.name,
            f"{each.checkpoints:,}",
            "" if each.latest_step is None else str(each.latest_step),
            "" if each.latest_at is None else f"{each.latest_at:%Y-%m-%d %H:%M:%S}",
            f"{each.nbytes:,}",
            f"{each.added_nbytes:,}",
        )
        for each in totals
    ]


def run_names(db: Database) -> list[str]:
    """Return the names of all runs, oldest first."""
    with db.catalog.read() as con:
        return [run.name for run in checkpoints.runs(con)]


def best(db: Database, metric: str, run: str | None, mode: Mode) -> Checkpoint:
    """Return the checkpoint with the best value of a metric, of a run or of all."""
    check_name(metric, "metric")
    with db.catalog.read() as con:
        rows = checkpoints.of_run(con, None if run is None else run_of(con, run).run_id)
    return from_row(best_of(rows, metric, mode, "any run" if run is None else f"run {run!r}"))


def log(db: Database, run_or_id: Any) -> CheckpointList:
    """Return a checkpoint, newest first followed by the one before it, and so on, over forks."""
    with db.catalog.read() as con:
        rows = checkpoints.of_run(con, None)
        row = find(con, run_or_id) if run_or_id is not None else (rows[-1] if rows else None)
    by_number = {each.number: each for each in rows}
    found = CheckpointList()
    while row is not None:
        found.append(from_row(row))
        row = None if row.parent is None else by_number.get(row.parent)
    return found


def tag(
    db: Database, run_or_id: Any, name: Any, *, step: Any, which: str, metric: str | None, mode: Mode, force: bool
) -> Checkpoint:
    """Give a checkpoint a name within its run."""
    check_name(name, "tag")
    if name in RESERVED:
        raise InvalidInputError(f"{name!r} cannot be a tag, it has a meaning of its own; choose another name")
    with db.catalog.write(f"tagging {name!r}") as con:
        row = find(con, run_or_id, step=step, which=which, metric=metric, mode=mode)
        run = run_of(con, row.run)
        taken = checkpoints.tagged(con, run.run_id, name)
        if taken is not None and taken != row.number and not force:
            there = from_row(checkpoints.by_number(con, [taken])[0])
            raise AlreadyExistsError(
                f"run {run.name!r} has a tag {name!r} already, on step {there.step} ({there.id}); force=True moves it"
            )
        checkpoints.set_tag(con, run.run_id, name, row.number)
        return from_row(checkpoints.by_number(con, [row.number])[0])


def untag(db: Database, run: str, name: str) -> None:
    """Delete a tag; its checkpoint stays."""
    with db.catalog.write(f"deleting the tag {name!r}") as con:
        row = run_of(con, run)
        if checkpoints.tagged(con, row.run_id, check_name(name, "tag")) is None:
            raise CheckpointNotFoundError(f"run {run!r} has no tag {name!r}")
        checkpoints.remove_tag(con, row.run_id, name)


def fork(
    db: Database, run_or_id: Any, new_run: Any, *, step: Any, which: str, metric: str | None, mode: Mode
) -> Checkpoint:
    """Begin a run with a checkpoint of another one; no byte is copied, and either may be deleted without the other."""
    check_name(new_run, "new_run")
    with db.catalog.write(f"forking to {new_run!r}") as con:
        row = find(con, run_or_id, step=step, which=which, metric=metric, mode=mode)
        if checkpoints.run_named(con, new_run) is not None:
            raise AlreadyExistsError(f"there is a run {new_run!r} already; choose another name, or delete it first")
        run = checkpoints.add_run(con, new_run)
        number = checkpoints.copy(con, row.number, run.run_id)
        objects.add_references(con, checkpoint_tensors.references(con, [number]))
        return from_row(checkpoints.by_number(con, [number])[0])


def delete(db: Database, run_or_id: Any, *, step: Any, which: str, metric: str | None, mode: Mode) -> Checkpoint:
    """Delete one checkpoint, with its tags."""
    with db.catalog.write("deleting a checkpoint") as con:
        row = find(con, run_or_id, step=step, which=which, metric=metric, mode=mode)
        remove(con, [row])
        return from_row(row)


def delete_run(db: Database, name: str) -> int:
    """Delete a run with all its checkpoints, and return how many there were."""
    with db.catalog.write(f"deleting the run {name!r}") as con:
        _check_is_run(con, name)
        run = run_of(con, name)
        rows = checkpoints.of_run(con, run.run_id)
        remove(con, rows)
        checkpoints.remove_run(con, run.run_id)
        return len(rows)


def remove(con: duckdb.DuckDBPyConnection, rows: Sequence[CheckpointRow]) -> int:
    """Delete checkpoints inside a write block; return the stored bytes that nothing names any more."""
    if not rows:
        return 0
    gone = {row.number: row.parent for row in rows}
    checkpoints.adopt(con, gone)
    numbers = list(gone)
    counts = checkpoint_tensors.references(con, numbers)
    checkpoints.remove(con, numbers)
    return objects.release(con, counts)


def _of_run(con: duckdb.DuckDBPyConnection, run: RunRow, step: int | None, which: Any) -> CheckpointRow:
    if which == "latest":
        number = checkpoints.latest(con, run.run_id, step)
        if number is None:
            steps = [row.step for row in checkpoints.of_run(con, run.run_id)]
            wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise CheckpointNotFoundError(f"run {run.name!r} has {wanted} (steps: {listed(steps)})")
    else:
        number = checkpoints.tagged(con, run.run_id, check_name(which, "which"))
        if number is None:
            tags = sorted({name for row in checkpoints.of_run(con, run.run_id) for name in row.tags})
            raise CheckpointNotFoundError(
                f"run {run.name!r} has no tag {which!r}{meant(which, [*tags, *RESERVED])} (tags: {listed(tags)}; and "
                "there are 'latest' and 'best')"
            )
    return checkpoints.by_number(con, [number])[0]


def _by_id(con: duckdb.DuckDBPyConnection, text: str) -> CheckpointRow:
    found = _with_id(con, text)
    if not found:
        raise checkpoints.no_run(con, text, "there is no run and no checkpoint")
    return found[0]


def _with_id(con: duckdb.DuckDBPyConnection, text: str) -> list[CheckpointRow]:
    number = sequence_of(text, CHECKPOINT_NONCE)
    return [] if number is None else checkpoints.by_number(con, [number])


def _check_is_run(con: duckdb.DuckDBPyConnection, name: Any) -> None:
    """Raise InvalidInputError for a checkpoint in the place of its run."""
    text = name.id if isinstance(name, Checkpoint) else check_name(name, "run")
    if isinstance(name, Checkpoint) or checkpoints.run_named(con, text) is None:
        for row in _with_id(con, text):
            raise InvalidInputError(
                f"{text!r} is a checkpoint of run {row.run!r}; delete() deletes it alone, and delete_run({row.run!r}) "
                "all of its run"
            )


def _is_number(value: Any) -> bool:
    return value is not None and not math.isnan(value)
