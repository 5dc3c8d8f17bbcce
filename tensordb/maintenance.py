"""Looking after a database: verify every byte, reclaim what is dead.

Invariant: a segment is removed only while the catalog's write lease is held and names nothing in it, and only when no
live writer holds it; a reader that mapped it keeps its map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tensordb.catalog import datasets, objects, records
from tensordb.catalog.records import RecordRow
from tensordb.engine import Database
from tensordb.engine.moving import move_inline, move_segment
from tensordb.errors import ConflictError, DatasetNotFoundError, FormatError, IntegrityError, InvalidInputError

_SMALL_NBYTES = 16 << 20
"""Segments below this are put together: each run of a program may leave one."""


@dataclass(frozen=True)
class DamagedRecord:
    """A record whose stored bytes are not what was written.

    Attributes:
        reason: What does not match, with the object and the place.
    """

    dataset: str
    record_id: str
    reason: str


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        records: Records looked at.
        objects: Objects read back, every byte of them.
        damaged: The records that cannot be read as they were written.
    """

    records: int
    objects: int
    damaged: tuple[DamagedRecord, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damaged


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
        """Read every stored byte of a dataset back, or of all, past every cache.

        Args:
            name: The dataset, None for all.

        Returns:
            How much was read, and each damaged record; damage is reported, not raised.

        Raises:
            DatasetNotFoundError: No dataset has this name.
            IntegrityError: The catalog itself cannot be read.
        """
        with self._db.catalog.read() as con:
            rows = datasets.fetch_all(con) if name is None else [self._db.catalog.known.dataset(con, name)]
        count, seen, damaged = 0, 0, []
        for row in rows:
            try:
                found, objects_read, broken = self._verify_dataset(row.name)
            except DatasetNotFoundError:  # deleted meanwhile
                continue
            count, seen = count + found, seen + objects_read
            damaged += broken
        return VerifyReport(count, seen, tuple(damaged))

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

    def _verify_dataset(self, name: str) -> tuple[int, int, list[DamagedRecord]]:
        with self._db.catalog.read() as con:
            rows = records.everything(con, self._db.catalog.known.dataset(con, name))
        by_object: dict[bytes, list[RecordRow]] = {}
        for row in rows:
            by_object.setdefault(row.source, []).append(row)
        damaged = []
        for sharing in by_object.values():
            error = self._damage_of(name, sharing[0], whole=True)
            if error is not None:
                damaged += self._damaged_of(name, sharing, error)
        return len(rows), len(by_object), damaged

    def _damage_of(self, name: str, row: RecordRow, *, whole: bool) -> Exception | None:
        try:
            with self._db.catalog.read() as con:
                source = self._db.reader.reopen(con, name, row)
            self._db.reader.verify(name, row, source, whole=whole)  # without keeping writers waiting
        except (IntegrityError, FormatError) as error:
            return error
        return None

    def _damaged_of(self, name: str, sharing: Sequence[RecordRow], error: Exception) -> list[DamagedRecord]:
        """Say which records of a damaged object cannot be read: of a page, often only some."""
        reasons = {row: self._damage_of(name, row, whole=False) for row in sharing}
        # Damage that no read meets is still damage: nobody can tell to whom it belongs.
        broken = {row: reason for row, reason in reasons.items() if reason} or dict.fromkeys(sharing, error)
        with self._db.catalog.read() as con:  # what was deleted meanwhile could not be found, which is no damage
            dataset = self._db.catalog.known.dataset(con, name)
            there = {(row.seq, row.object_id) for row in records.by_sequence(con, dataset, [row.seq for row in broken])}
        return [
            DamagedRecord(name, row.record_id, str(reason))
            for row, reason in broken.items()
            if (row.seq, row.object_id) in there
        ]
