"""Taking out of a database what is damaged beyond reading, so that everything else works again.

Invariant: nothing that can be read is removed; what is removed is named in the report. Damage is found by `verify`,
outside of any lock, and is looked at once more before its record goes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tensordb.catalog import checkpoint_tensors, checkpoints, objects, records, weights
from tensordb.catalog.ids import CHECKPOINT_NONCE, sequence_of
from tensordb.catalog.records import RecordRow
from tensordb.engine import Database
from tensordb.errors import DatasetNotFoundError
from tensordb.maintenance.verifying import DamagedRecord, DamagedTensor, DamagedWeight, verify


@dataclass(frozen=True)
class RepairReport:
    """What `repair` found and did.

    Attributes:
        dry_run: Whether it only looked.
        records: Records looked at, before anything was removed.
        checkpoints: Checkpoints looked at.
        weights: Weights and deltas looked at.
        removed_records: The damaged records, which were removed.
        damaged_tensors: The damaged tensors of checkpoints.
        removed_checkpoints: Ids of the checkpoints that were removed for them; empty unless that was asked for.
        removed_weights: The damaged weights and deltas, which were removed.
        not_salvaged: What else could not be read when a database was salvaged into another folder.
    """

    dry_run: bool
    records: int = 0
    checkpoints: int = 0
    weights: int = 0
    removed_records: tuple[DamagedRecord, ...] = ()
    damaged_tensors: tuple[DamagedTensor, ...] = ()
    removed_checkpoints: tuple[str, ...] = ()
    removed_weights: tuple[DamagedWeight, ...] = ()
    not_salvaged: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing was damaged."""
        return not (self.removed_records or self.damaged_tensors or self.removed_weights or self.not_salvaged)


def repair(db: Database, *, drop_checkpoints: bool, dry_run: bool) -> RepairReport:
    """Remove what is damaged; see `Maintenance.repair`."""
    found = verify(db, None)
    broken = tuple(dict.fromkeys(each.checkpoint_id for each in found.damaged_tensors)) if drop_checkpoints else ()
    if not dry_run:
        by_dataset: dict[str, list[DamagedRecord]] = {}
        for each in found.damaged:
            by_dataset.setdefault(each.dataset, []).append(each)
        for name, damaged in by_dataset.items():
            _remove_records(db, name, damaged)
        _remove_weights(db, found.damaged_weights)
        _remove_checkpoints(db, broken)
        db.reader.forget()
    return RepairReport(
        dry_run,
        found.records,
        found.checkpoints,
        found.weights,
        found.damaged,
        found.damaged_tensors,
        broken,
        found.damaged_weights,
    )


def _remove_records(db: Database, name: str, damaged: Iterable[DamagedRecord]) -> None:
    wanted = [each.record_id for each in damaged]
    try:
        with db.catalog.write(f"removing damaged records of {name!r}") as con:
            row = db.catalog.known.dataset(con, name)
            found: list[RecordRow] = list(records.by_ids(con, row, wanted).values())
            if found:
                objects.release(con, records.delete(con, row, [each.seq for each in found]))
            db.catalog.known.forget_sequence(row)
            db.catalog.known.forget_inline()
    except DatasetNotFoundError:  # deleted meanwhile
        return


def _remove_weights(db: Database, damaged: Iterable[DamagedWeight]) -> None:
    keys = {
        (bytes.fromhex(each.hash), None if each.base_hash is None else bytes.fromhex(each.base_hash))
        for each in damaged
    }
    if not keys:
        return
    with db.catalog.write("removing damaged weights") as con:
        there = weights.numbers_of(con, [content for content, _ in keys])
        objects.release(con, weights.remove(con, [number for key, number in there.items() if key in keys]))


def _remove_checkpoints(db: Database, broken: Iterable[str]) -> None:
    numbers = [number for each in broken if (number := sequence_of(each, CHECKPOINT_NONCE)) is not None]
    if not numbers:
        return
    with db.catalog.write("removing damaged checkpoints") as con:
        rows = checkpoints.by_number(con, numbers)
        checkpoints.adopt(con, {row.number: row.parent for row in rows})
        counts = checkpoint_tensors.references(con, [row.number for row in rows])
        checkpoints.remove(con, [row.number for row in rows])
        objects.release(con, counts)
