"""Looking after a database: verify every byte, take out what is damaged, reclaim what is dead."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tensordb.catalog import datasets
from tensordb.encoding.presets import CompressionConfig, get_compression_preset
from tensordb.engine import Database
from tensordb.engine.moving import move_inline
from tensordb.engine.recoding import compact_records
from tensordb.errors import ConflictError, IntegrityError, InvalidInputError
from tensordb.maintenance.repairing import repair
from tensordb.maintenance.reports import RepairReport, VerifyReport
from tensordb.maintenance.rewriting import remove_dead, rewrite_mostly_dead
from tensordb.maintenance.verifying import verify, verify_checkpoints


@dataclass(frozen=True)
class ReclaimReport:
    """What `gc` or `compact` won.

    Attributes:
        segments_removed: Segment files removed.
        nbytes_before: Bytes of the database's files at the beginning: catalog, its log, and segments.
        nbytes_after: The same at the end.
        payloads_moved: Records and objects whose payloads were written to another place.
        records_left: Records that did not take on the encoding that `compact` was asked for.
    """

    segments_removed: int
    nbytes_before: int
    nbytes_after: int
    payloads_moved: int = 0
    records_left: int = 0

    @property
    def nbytes_freed(self) -> int:
        """Bytes that the files shrank by; negative where they grew."""
        return self.nbytes_before - self.nbytes_after


class Maintenance:
    """The verbs behind ``db.maintenance``."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def verify(self, name: str | None = None) -> VerifyReport:
        """Read every stored byte of a dataset back, or of all datasets, checkpoints and weights, past every cache.

        What is damaged is marked, unless the database was opened with ``read_only=True``: when an equal tensor is
        inserted, saved or stored after that, it is written anew, for all that share it.

        With everything, the catalog is held against itself, too (are rows found by their keys, is all there that is
        named, do counts agree), and headers, footers and padding of segment files are compared.

        Args:
            name: The dataset, None for everything.

        Returns:
            How much was read, and what is damaged; damage is reported, not raised. So is what cannot be read here, for
            want of a newer release or torch, of a package or of a file's permission: that is no damage, and is neither
            marked nor removed.

        Raises:
            DatasetNotFoundError: No dataset has this name.
            IntegrityError: The catalog itself cannot be read.
        """
        return verify(self._db, name)

    def verify_checkpoints(self, run: str | None = None) -> VerifyReport:
        """Read every stored byte of the checkpoints of a run, or of all, back, past every cache; else like `verify`.

        Raises:
            CheckpointNotFoundError: No run has this name.
        """
        return verify_checkpoints(self._db, run)

    def repair(self, *, drop_checkpoints: bool = False, dry_run: bool = False) -> RepairReport:
        """Remove the records and weights whose stored bytes are damaged, so that everything else works again.

        The database is read whole, as by `verify`, and what is damaged is looked at once more in the write that takes
        it out. What can be read stays, what others mended or replaced meanwhile too, and so does what only cannot be
        read here. All that was removed is named in the report. Segment files, and pages, that are damaged beside what
        is read are written anew; the report says what kept it from that. A database that cannot be opened is for
        ``tensordb repair PATH TARGET``.

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
        before = self._nbytes()
        return ReclaimReport(remove_dead(self._db), before, self._nbytes())

    def compact(
        self,
        name: str | None = None,
        *,
        min_dead: float = 0.5,
        preset: str | None = None,
        config: CompressionConfig | None = None,
    ) -> ReclaimReport:
        """Gather small records into pages, and give the space of what is dead back.

        Payloads that lie in records' rows and small objects of one record are encoded together, those of one spec and
        scheme in pages of 4 MiB, in insertion order; so are the rows of pages that are mostly dead, and of small pages
        that together make fewer. What is quantized is copied byte by byte instead, so that its values and the error
        that was measured stay as they are; of a quantized page that is mostly dead the dead rows are left out. Then
        segments that are mostly dead or small are rewritten, and those that nothing names are removed. What several
        records or others (checkpoints, weights) share stays an object of its own.

        Readers in other processes go on: what they mapped stays, and what they look up later they find at its new
        place. The catalog is held for the commits only. A crash leaves both copies, and the catalog names one.

        Args:
            name: The dataset whose records are gathered, or encoded anew; None for all. Segments are those of all.
            min_dead: Share of dead bytes, from 0 to 1, from which a segment is rewritten, and of dead rows a page.
            preset: Name of a preset to encode the records with, large ones too. What was stored lossless can take on
                any, and a quantizer's error is then measured against the original. What is quantized already keeps
                its encoding: it would lose again, by an amount that nobody can measure any more. So does what is
                shared with others. `records_left` counts both.
            config: The same as a config; not together with `preset`.

        Raises:
            DatasetNotFoundError: No dataset has this name.
            UnknownPresetError: No preset has this name.
            InvalidInputError: `min_dead` is no share, or both a preset and a config are given.
            ConflictError: Called inside a transaction, whose rollback could not bring a segment back.
            IntegrityError: Something is damaged; it stays where it is, and all else was done.
        """
        wanted = _config(preset, config)
        if isinstance(min_dead, bool) or not isinstance(min_dead, int | float) or not 0 <= min_dead <= 1:
            raise InvalidInputError(f"min_dead is {min_dead!r}; it is a share from 0 to 1")
        self._check_outside("compact")
        names = self._names(name)
        self._db.payloads.seal()
        self._db.catalog.checkpoint()  # what the log holds is counted on both sides as what it takes in the file
        before = self._nbytes()
        # What lies inline goes into pages at once; to be encoded anew it is made an object like all others first.
        inline, broken = (0, []) if wanted is None else move_inline(self._db, names)
        outcome, left = compact_records(self._db, names, min_dead=min_dead, config=wanted)
        if wanted is None:
            inline, broken = move_inline(self._db, names)
        rewritten, damaged = rewrite_mostly_dead(self._db, min_dead)
        self._db.payloads.seal()  # what comes next is apart from what is compact, and can be compacted without it
        removed = remove_dead(self._db)
        self._db.catalog.checkpoint()  # frees the blocks of what was inline, for DuckDB to use again
        damage = [*broken, *(damaged | outcome.damaged).values()]
        if damage:
            raise IntegrityError(
                f"{len(damage)} payload(s) that are damaged, or cannot be read here, stay where they are, all else "
                f"was done; verify() tells which are damaged, delete those and compact again: {'; '.join(damage[:10])}"
            )
        return ReclaimReport(removed, before, self._nbytes(), outcome.moved + inline + rewritten, left)

    def _names(self, name: str | None) -> list[str]:
        with self._db.catalog.read() as con:
            if name is not None:
                return [self._db.catalog.known.dataset(con, name).name]
            return [row.name for row in datasets.fetch_all(con)]

    def _nbytes(self) -> int:
        """Return the bytes of the database's files; in memory, of its segments."""
        total = sum(info.nbytes for info in self._db.payloads.segments())
        if self._db.folder is None:
            return total
        catalog = self._db.folder / "catalog.duckdb"
        return total + sum(_size(path) for path in (catalog, catalog.with_name("catalog.duckdb.wal")))

    def _check_outside(self, verb: str) -> None:
        with self._db.catalog.read():
            inside = self._db.catalog.in_transaction
        if inside:
            raise ConflictError(f"{verb} cannot run inside a transaction; leave the transaction first")


def _config(preset: str | None, config: CompressionConfig | None) -> CompressionConfig | None:
    if preset is not None and config is not None:
        raise InvalidInputError("preset and config both say what to encode with; give one of them")
    if config is not None and not isinstance(config, CompressionConfig):
        raise InvalidInputError(f"config is a {type(config).__name__}; give a CompressionConfig")
    return config if preset is None else get_compression_preset(preset)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
