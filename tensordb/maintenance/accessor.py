"""Looking after a database: verify every byte, reclaim what is dead.

Invariant: a segment is removed only while the catalog's write lease is held and names nothing in it, and only when no
live writer holds it; a reader that mapped it keeps its map.
"""

from __future__ import annotations

from dataclasses import dataclass

from tensordb.catalog import objects
from tensordb.engine import Database
from tensordb.engine.moving import move_inline, move_segment
from tensordb.errors import ConflictError, IntegrityError, InvalidInputError
from tensordb.maintenance.repairing import RepairReport, repair
from tensordb.maintenance.verifying import VerifyReport, verify, verify_checkpoints

_SMALL_NBYTES = 16 << 20
"""Segments below this are put together: each run of a program may leave one."""


@dataclass(frozen=True)
class ReclaimReport:
    """What `gc` or `compact` won.

    Attributes:
        segments_removed: Segment files removed.
        nbytes_freed: Bytes that the segments shrank by.
        payloads_moved: Payloads written to another place.
    """

    segments_removed: int
    nbytes_freed: int
    payloads_moved: int = 0


class Maintenance:
    """The verbs behind ``db.maintenance``."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def verify(self, name: str | None = None) -> VerifyReport:
        """Read every stored byte of a dataset back, or of all datasets, checkpoints and weights, past every cache.

        Args:
            name: The dataset, None for everything.

        Returns:
            How much was read, and what is damaged; damage is reported, not raised.

        Raises:
            DatasetNotFoundError: No dataset has this name.
            IntegrityError: The catalog itself cannot be read.
        """
        return verify(self._db, name)

    def verify_checkpoints(self, run: str | None = None) -> VerifyReport:
        """Read every stored byte of the checkpoints of a run, or of all, back, past every cache.

        Raises:
            CheckpointNotFoundError: No run has this name.
        """
        return verify_checkpoints(self._db, run)

    def repair(self, *, drop_checkpoints: bool = False, dry_run: bool = False) -> RepairReport:
        """Remove the records and weights whose stored bytes are damaged, so that everything else works again.

        The database is read whole, as by `verify`. What can be read stays, and all that was removed is named in the
        report. A database that cannot be opened is for ``tensordb repair PATH TARGET``.

        Args:
            drop_checkpoints: Remove checkpoints that have damaged tensors, too. Without, they are only named, and their
                sound tensors stay.
            dry_run: Only report.

        Raises:
            ConflictError: Called inside a transaction.
            IntegrityError: The catalog itself cannot be read.
        """
        self._check_outside("repair")
        return repair(self._db, drop_checkpoints=drop_checkpoints, dry_run=dry_run)

    def gc(self) -> ReclaimReport:
        """Remove segments that no record names, such as those left by a writer that was killed.

        Raises:
            ConflictError: Called inside a transaction, whose rollback could not bring a segment back.
        """
        self._check_outside("gc")
        payloads = self._db.payloads
        with self._db.catalog.read() as con:
            live = objects.live_nbytes(con)
        if any(info.live and info.id not in live for info in payloads.segments()):
            payloads.seal()  # perhaps it is the one that this process would append to next
        with self._db.catalog.write("collecting garbage") as con:
            live = objects.live_nbytes(con)
            dead = [info for info in payloads.segments() if info.id not in live]
            removed = [info for info in dead if payloads.remove(info.id)]
        return ReclaimReport(len(removed), sum(info.nbytes for info in removed))

    def compact(self, *, min_dead: float = 0.5) -> ReclaimReport:
        """Rewrite segments that are mostly dead or small, move inlined payloads into them, then remove what is dead.

        Payloads are copied byte by byte, not encoded again. Readers in other processes go on: what they mapped stays,
        and what they look up later they find at its new place. A crash leaves both copies, and the catalog names one.

        Args:
            min_dead: Share of dead bytes, from 0 to 1, from which a segment is rewritten.

        Raises:
            ConflictError: Called inside a transaction, whose rollback could not bring a segment back.
            IntegrityError: A payload that would be moved is damaged; it stays where it is, and so does what shares its
                segment. What was inlined and is sound was moved all the same.
        """
        if isinstance(min_dead, bool) or not isinstance(min_dead, int | float) or not 0 <= min_dead <= 1:
            raise InvalidInputError(f"min_dead is {min_dead!r}; it is a share from 0 to 1")
        self._check_outside("compact")
        payloads = self._db.payloads
        payloads.seal()
        before = sum(info.nbytes for info in payloads.segments())
        moved, damaged = move_inline(self._db)
        with self._db.catalog.read() as con:
            live = objects.live_nbytes(con)
        idle = [info for info in payloads.segments() if not info.live and info.nbytes]
        small = [info for info in idle if info.nbytes < _SMALL_NBYTES]
        for info in idle:
            dead = 1 - live.get(info.id, 0) / info.nbytes
            if dead >= min_dead or (info in small and len(small) > 1):
                moved += move_segment(self._db, info.id)
        removed = self.gc().segments_removed
        after = sum(info.nbytes for info in payloads.segments())
        if damaged:
            raise IntegrityError(
                f"{len(damaged)} damaged payload(s) stay where they are, all others were moved; delete the records and "
                f"compact again: {'; '.join(damaged[:10])}"
            )
        return ReclaimReport(removed, max(0, before - after), moved)

    def _check_outside(self, verb: str) -> None:
        with self._db.catalog.read():
            inside = self._db.catalog.in_transaction
        if inside:
            raise ConflictError(f"{verb} cannot run inside a transaction; leave the transaction first")
