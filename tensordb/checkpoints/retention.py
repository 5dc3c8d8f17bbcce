"""Which checkpoints of a run to keep, and deleting the others."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tensordb.catalog import checkpoint_tensors, checkpoints, objects
from tensordb.catalog.checkpoints import CheckpointRow
from tensordb.checkpoints.checkpoint import Checkpoint, from_row, html_of
from tensordb.checkpoints.history import Mode, ranked_by, remove, run_of
from tensordb.engine import Database
from tensordb.errors import InvalidInputError


@dataclass(frozen=True)
class PruneReport:
    """What `prune` did, or with ``dry_run=True`` would do.

    Attributes:
        removed: The checkpoints that are gone, oldest first.
        kept: Those that stay.
        nbytes_freed: Stored bytes that nothing names any more; ``db.maintenance.compact()`` gives them to the disk.
        dry_run: Whether nothing was changed.
    """

    removed: tuple[Checkpoint, ...]
    kept: tuple[Checkpoint, ...]
    nbytes_freed: int
    dry_run: bool = False

    def __repr__(self) -> str:
        steps = ", ".join(str(each.step) for each in self.removed) or "none"
        verb = "would remove" if self.dry_run else "removed"
        return f"PruneReport({verb} steps {steps}; kept {len(self.kept)}; {self.nbytes_freed:,} bytes freed)"

    def _repr_html_(self) -> str:
        return f"<p>{'Would be removed' if self.dry_run else 'Removed'}:</p>{html_of(self.removed)}"


@dataclass(frozen=True, slots=True)
class Retention:
    """What to keep of a run: the union of all that is asked for, the newest, and whatever has a tag.

    Attributes:
        last: The newest so many.
        best: The best so many by `metric`.
        metric: Name of the metric; may be left out where the checkpoints have only one.
        mode: Whether the smallest or the largest value is best.
        every: Those whose step is a multiple of it.
        within: Those not older than this.
    """

    last: int | None = None
    best: int | None = None
    metric: str | None = None
    mode: Mode = "min"
    every: int | None = None
    within: dt.timedelta | None = None

    def __post_init__(self) -> None:
        for name, least in (("last", 1), ("best", 1), ("every", 1)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise InvalidInputError(f"keep_{name} is {value!r}; give an int from {least}")
        if self.within is not None and not isinstance(self.within, dt.timedelta):
            raise InvalidInputError(f"keep_within is {self.within!r}; give a datetime.timedelta")
        if self.within is not None and self.within < dt.timedelta(0):  # two times in the wrong order would keep nothing
            raise InvalidInputError(f"keep_within is {self.within!r}, a time before it began; give one from 0")
        if all(each is None for each in (self.last, self.best, self.every, self.within)):
            raise InvalidInputError(
                "prune was not told what to keep; give keep_last, keep_best, keep_every or keep_within"
            )
        if self.mode not in ("min", "max"):
            raise InvalidInputError(f"mode is {self.mode!r}; give 'min' or 'max'")
        if self.best is None and self.metric is not None:
            raise InvalidInputError(f"metric={self.metric!r} is for keep_best; give both, or none")

    def kept(self, rows: Sequence[CheckpointRow], now: dt.datetime) -> set[int]:
        """Return the numbers of the checkpoints of a run, oldest first, that stay."""
        keep = {row.number for row in rows if row.tags} | {row.number for row in rows[-(self.last or 1) :]}
        if self.every is not None:
            keep |= {row.number for row in rows if row.step is not None and row.step % self.every == 0}
        if self.within is not None:
            keep |= {row.number for row in rows if now - row.created_at <= self.within}
        return keep | self._best(rows)

    def _best(self, rows: Sequence[CheckpointRow]) -> set[int]:
        if self.best is None or not rows:
            return set()
        # An unknown metric is an error here too: taken for one that nobody has, it would have everything deleted.
        ranked = ranked_by(rows, self.metric, self.mode, "the run")
        return {row.number for row in ranked[: self.best]}


def prune(db: Database, run: str, retention: Retention, *, dry_run: bool) -> PruneReport:
    """Delete the checkpoints of a run that `retention` does not keep, in one transaction."""
    with db.catalog.read() if dry_run else db.catalog.write(f"pruning {run!r}") as con:
        rows = checkpoints.of_run(con, run_of(con, run).run_id)
        keep = retention.kept(rows, dt.datetime.now(dt.UTC).replace(tzinfo=None))
        gone = [row for row in rows if row.number not in keep]
        if dry_run:
            freed = objects.freed_by(con, checkpoint_tensors.references(con, [row.number for row in gone]))
        else:
            freed = remove(con, gone)
    parents = {row.number: row.parent for row in gone}
    kept = tuple(from_row(_adopted(row, parents)) for row in rows if row.number in keep)
    return PruneReport(tuple(map(from_row, gone)), kept, freed, dry_run)


def _adopted(row: CheckpointRow, gone: Mapping[int, int | None]) -> CheckpointRow:
    """Return a checkpoint with the parent that it has once others are gone."""
    parent = row.parent
    while parent is not None and parent in gone:
        parent = gone[parent]
    return row._replace(parent=parent)
