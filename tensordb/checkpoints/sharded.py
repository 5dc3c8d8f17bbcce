"""Checkpoints that several processes write together: each its own parts, one of them the commit.

Each process opens the folder for itself. What `write` stores is named by nobody until `commit`; nobody removes it while
the database that wrote it stays open, whose segments are locked for so long. What the processes hand to the one that
commits is plain data. A checkpoint is visible whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch

from tensordb.catalog import checkpoint_tensors, checkpoints
from tensordb.catalog.deltas import StoredContent
from tensordb.checkpoints import history, saving
from tensordb.checkpoints.checkpoint import Checkpoint, from_row
from tensordb.checkpoints.loading import document_of
from tensordb.checkpoints.requests import Facts
from tensordb.checkpoints.roles import KeyConfigs
from tensordb.checkpoints.saving import WrittenTensor
from tensordb.checkpoints.tree import Leaf, flatten, unflatten_values
from tensordb.checkpoints.tree.wire import split, with_note
from tensordb.engine import Database, ObjectSource, Stored
from tensordb.engine.contents import ContentWriter, on_all_cores
from tensordb.errors import CheckpointNotFoundError, ConflictError, IntegrityError, InvalidInputError, ReadOnlyError
from tensordb.tensors import spec_of

Note = Callable[[Callable[[torch.Tensor], int]], Any]
"""Makes the note of a checkpoint, given what says which leaf a stand-in is."""


@dataclass(frozen=True, slots=True, eq=False)
class ShardedCheckpoint:
    """A sharded checkpoint that was found.

    Attributes:
        checkpoint: What is known of it.
        document: Its state without the values of tensors.
        note: What was attached to that, as bytes.
        names: Of each of its leaves.
        object_ids: What each of its leaves is stored as.
    """

    checkpoint: Checkpoint
    number: int
    document: bytes
    note: bytes
    names: dict[int, str]
    object_ids: dict[int, bytes]


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A part of a checkpoint that is stored and not committed yet; plain data that can be sent to another process."""

    tensor: WrittenTensor
    place: Stored | StoredContent


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """A box of a leaf that is to be read.

    Attributes:
        leaf: Number of the leaf.
        index: The box, a slice for each dimension.
        target: Where it goes: a tensor of its shape, of any dtype, strides and device.
    """

    leaf: int
    index: tuple[slice, ...]
    target: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the target."""
        return self.target.numel() * self.target.element_size()


class ShardedCheckpoints:
    """What writers and readers of sharded checkpoints are built on."""

    def __init__(self, db: Database) -> None:
        """Bind a database."""
        self._db = db

    @property
    def in_memory(self) -> bool:
        """Whether there is no folder that other processes could open."""
        return self._db.folder is None

    def configs(self, preset: Any) -> KeyConfigs:
        """Return what a preset, a config, or those by top-level key stand for."""
        return KeyConfigs.of(preset, self._db.config)

    def held(self) -> AbstractContextManager[None]:
        """Keep what is written inside the block in one that stays in memory, where no lock does."""
        return self._db.payloads.writing()

    def write(self, run: str, leaves: Iterable[Leaf], configs: KeyConfigs) -> list[StoredTensor]:
        """Store parts of a checkpoint, durably and named by nobody; those stored already are not written again.

        Args:
            run: Name of the run, of whose newest checkpoint they may be stored as differences.
            leaves: The parts, by the name of their tensor or what `shards.part_name` adds to it.
            configs: What to encode them with.

        Returns:
            For each part what `commit` needs of it; plain data that can be sent to another process.
        """
        if self._db.read_only:
            raise ReadOnlyError(f"saving {run!r}: the database was opened with read_only=True; open it without")
        writer = ContentWriter(self._db, sharing=True)
        written = saving.write_tensors(self._db, writer, run, configs, leaves)
        self._db.payloads.flush()
        return [StoredTensor(each, writer.place(each.content_id)) for each in written]

    def commit(
        self, facts: Facts, tree: Any, stand_ins: Mapping[int, StoredTensor], note: Note, configs: KeyConfigs
    ) -> Checkpoint:
        """Make a checkpoint of parts that are stored, in one transaction.

        Args:
            facts: What is known of it beside its state.
            tree: The state, with stand-ins for stored parts: a tensor for a whole, `Sharded` for one in parts. Other
                tensors and arrays in it are stored now.
            stand_ins: What is stored for each of them, by their ``data_ptr()``.
            note: Makes what is attached to the document, a value that a tree can hold without tensors.
            configs: What other tensors are encoded with.

        Raises:
            ConflictError: Others deleted meanwhile what parts shared, or payloads of a process that ended were removed.
        """
        flat = flatten(tree)
        places = [leaf.tensor.data_ptr() for leaf in flat.leaves]
        positions = {place: position for position, place in enumerate(places)}
        attached = flatten(note(lambda stand_in: positions[stand_in.data_ptr()])).document
        others = [leaf for leaf, place in zip(flat.leaves, places, strict=True) if place not in stand_ins]
        with self._db.payloads.writing():
            writer = ContentWriter(self._db, sharing=True)
            more = iter(saving.write_tensors(self._db, writer, facts.run, configs, others))
            written = [
                replace(stand_ins[place].tensor, name=leaf.name) if place in stand_ins else next(more)
                for leaf, place in zip(flat.leaves, places, strict=True)
            ]
            document = saving.write_document(self._db, with_note(flat.document, attached))
            self._db.payloads.flush()
            writer.adopt(_places(stand_ins.values()))
            with self._db.catalog.write(f"saving a checkpoint of {facts.run!r}", keeps_records=True):
                self._check_written(stand_ins.values())
                return saving.commit(self._db, writer, facts, written, document)

    def _check_written(self, stored: Iterable[StoredTensor]) -> None:
        """Look for payloads again, inside the write block: the segments of a process that was killed are unlocked."""
        locations = [each.place.location for each in stored if isinstance(each.place, Stored) and each.place.location]
        last = {place.segment: place for place in sorted(locations, key=lambda place: place.offset)}
        try:
            for place in last.values():
                self._db.payloads.read(place)
        except IntegrityError as error:
            raise ConflictError(
                "payloads of this checkpoint were removed before its commit, as can happen when a process that wrote "
                f"some of them was killed ({error}); save it again"
            ) from error

    def find(self, run_or_id: str, *, step: int | None, which: str) -> ShardedCheckpoint:
        """Return a sharded checkpoint.

        Raises:
            CheckpointNotFoundError: There is none.
            InvalidInputError: It is no sharded one.
        """
        with self._db.catalog.read() as con:
            row = history.find(con, run_or_id, step=step, which=which)
            document, note = split(document_of(self._db, con, row))
            rows = checkpoint_tensors.of_checkpoint(con, row.number)
        if note is None:
            raise InvalidInputError(
                f"the checkpoint of step {row.step} of run {row.run!r} was saved in one piece; load it with "
                "db.checkpoints.load"
            )
        return ShardedCheckpoint(
            from_row(row),
            row.number,
            document,
            note,
            {each.position: each.name for each in rows},
            {each.position: each.object_id for each in rows},
        )

    def values(self, found: ShardedCheckpoint, left_out: Collection[int]) -> Any:
        """Return the state without what is stored in the leaves `left_out`."""
        needed = found.object_ids.keys() - set(left_out)
        names, sources = self._opened(found, needed)
        decoded = {leaf: self._db.sources.decode(names[leaf], sources[leaf]) for leaf in sorted(needed)}
        return unflatten_values(found.document, decoded.__getitem__, left_out)

    def read(self, found: ShardedCheckpoint, wanted: Sequence[Wanted]) -> None:
        """Read boxes of leaves on all cores, decoding only the chunks that they touch.

        Raises:
            CheckpointNotFoundError: It was deleted meanwhile.
            InvalidInputError: A target has another shape than what goes there.
            IntegrityError: Stored bytes are damaged.
        """
        names, sources = self._opened(found, {each.leaf for each in wanted})

        def work(at: int) -> None:
            each = wanted[at]
            self._decode(names[each.leaf], sources[each.leaf], each)

        on_all_cores([each.nbytes for each in wanted], range(len(wanted)), work)

    def _decode(self, name: str, source: ObjectSource, wanted: Wanted) -> None:
        index, target = wanted.index, wanted.target
        spec = source.reader.spec
        if spec_of(target) == spec and index == tuple(slice(0, size) for size in spec.shape):
            self._db.sources.decode(name, source, out=target)
            return
        read = self._db.sources.decode(name, source, index=index)
        if read.shape != target.shape:
            raise InvalidInputError(f"{name}: {tuple(read.shape)} is read, and {tuple(target.shape)} asked for")
        target.copy_(read)

    def _opened(
        self, found: ShardedCheckpoint, leaves: Collection[int]
    ) -> tuple[dict[int, str], dict[int, ObjectSource]]:
        """Return what leaves are called in errors, and what decodes them."""
        where = f"of the checkpoint of step {found.checkpoint.step} of run {found.checkpoint.run!r}"
        names = {leaf: f"tensor {found.names[leaf]!r} {where}" for leaf in leaves}
        with self._db.catalog.read() as con:
            if not checkpoints.by_number(con, [found.number]):
                raise CheckpointNotFoundError(f"the rest {where} is gone: it was deleted while it was loaded")
            sources = self._db.sources.open(con, {found.object_ids[leaf]: name for leaf, name in names.items()})
        return names, {leaf: sources[found.object_ids[leaf]] for leaf in leaves}


def _places(stored: Iterable[StoredTensor]) -> dict[bytes, Stored | StoredContent]:
    """Return one place for each content; of several the one that was there before, which adds nothing."""
    places: dict[bytes, Stored | StoredContent] = {}
    for each in stored:
        if each.tensor.content_id not in places or isinstance(each.place, StoredContent):
            places[each.tensor.content_id] = each.place
    return places
