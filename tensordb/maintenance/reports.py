"""What `verify` found and `repair` did, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from tensordb.maintenance.judging import Unreadable


@dataclass(frozen=True)
class DamagedRecord:
    """A record whose stored bytes are not what was written.

    Attributes:
        reason: What does not match, with the object and the place.
        seq: Its number in the catalog, which no other record of the dataset is given.
        object_id: Of the object that holds it, in hex.
    """

    dataset: str
    record_id: str
    reason: str
    seq: int = field(default=-1, repr=False, compare=False)
    object_id: str = field(default="", repr=False, compare=False)


@dataclass(frozen=True)
class DamagedTensor:
    """A tensor of a checkpoint whose stored bytes are not what was saved; its name is "" for the rest of the state.

    Attributes:
        reason: What does not match, with the object and the place.
    """

    run: str
    step: int | None
    checkpoint_id: str
    name: str
    reason: str


@dataclass(frozen=True)
class DamagedWeight:
    """A weight, or a delta, whose stored bytes are not what was stored.

    Attributes:
        hash: Its hash.
        base_hash: For a delta the hash of the base it was stored with, else None.
        reason: What does not match, with the object and the place.
    """

    hash: str
    base_hash: str | None
    reason: str


class DamagedPage(NamedTuple):
    """A page with damage among rows that no record names any more."""

    dataset: str
    object_id: bytes
    sentence: str


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        records: Records looked at.
        objects: Objects read back, every byte of them.
        damaged: The records that cannot be read as they were written.
        checkpoints: Checkpoints looked at.
        damaged_tensors: The tensors of checkpoints that cannot be read as they were saved.
        weights: Weights and deltas looked at.
        damaged_weights: Those that cannot be read as they were stored.
        catalog_blocks: Blocks of the catalog's file whose checksums were compared; 0 where one dataset or run was
            asked for, and for a database in memory.
        damaged_catalog: What the catalog's tables contradict each other in, a sentence each.
        damaged_segments: Where segment files are damaged beside what is read (header, footer, padding, rows of pages
            that no record names), likewise.
        unreadable: What cannot be read here, by name and reason: nobody can tell whether it is damaged, and nothing
            is done to it.
        damaged_pages: The pages among `damaged_segments`.
        damaged_files: The ids of the segments among them.
    """

    records: int
    objects: int
    damaged: tuple[DamagedRecord, ...] = field(default=())
    checkpoints: int = 0
    damaged_tensors: tuple[DamagedTensor, ...] = field(default=())
    weights: int = 0
    damaged_weights: tuple[DamagedWeight, ...] = field(default=())
    catalog_blocks: int = 0
    damaged_catalog: tuple[str, ...] = field(default=())
    damaged_segments: tuple[str, ...] = field(default=())
    unreadable: tuple[Unreadable, ...] = ()
    damaged_pages: tuple[DamagedPage, ...] = field(default=(), repr=False, compare=False)
    damaged_files: tuple[int, ...] = field(default=(), repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """Whether everything was read, and nothing is damaged."""
        of_payloads = self.damaged or self.damaged_tensors or self.damaged_weights
        return not (of_payloads or self.damaged_catalog or self.damaged_segments or self.unreadable)


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
        mended_catalog: Bytes of the catalog that were put right then, as its checksums tell; nothing is lost by them.
        unreadable: What cannot be read here, by name and reason; it may be sound, and stays as it is.
        damaged_catalog: What the catalog's tables contradicted each other in, before anything was removed; salvaging
            writes them anew, and nothing else is done about it.
        damaged_segments: Where segment files were damaged beside what is read.
        mended_segments: Those of them that were mended: what lives in the file, or page, was written to another. A file
            that is being written to stays, and so does one of which a payload cannot be moved.
        mending_stopped: What kept the others from being mended (a full disk, a database that others hold, one that was
            opened to be read), None where nothing did.
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
    mended_catalog: tuple[str, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    damaged_catalog: tuple[str, ...] = ()
    damaged_segments: tuple[str, ...] = ()
    mended_segments: tuple[str, ...] = ()
    mending_stopped: str | None = None

    @property
    def ok(self) -> bool:
        """Whether everything could be read, and nothing was damaged."""
        damaged = self.removed_records or self.damaged_tensors or self.removed_weights
        elsewhere = self.damaged_catalog or self.damaged_segments or self.mended_catalog
        return not (damaged or elsewhere or self.not_salvaged or self.unreadable)
