"""Checkpoints of torch.distributed.checkpoint in a database: models sharded over many ranks.

`TensorDBWriter` and `TensorDBReader` go where `FileSystemWriter` and `FileSystemReader` do. Every rank encodes and
writes its own shards, through a database of its own on the same folder; the coordinator commits once, so that a
checkpoint is there whole or not at all. What is loaded may be sharded otherwise: each rank decodes only the chunks
that its own shards touch. Nothing is pickled: values that are no tensors are stored as `db.checkpoints` stores them.

>>> import tempfile, warnings
>>> import torch
>>> import torch.distributed.checkpoint as dcp
>>> from tensordb.integrations.dcp import TensorDBReader, TensorDBWriter
>>> with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):  # dcp says: no ranks
...     state = {"model": torch.nn.Linear(4, 2).state_dict(), "step": 7}
...     _ = dcp.save(state, storage_writer=TensorDBWriter(folder, "run", step=7))
...     found = {"model": torch.nn.Linear(4, 2).state_dict(), "step": 0}
...     dcp.load(found, storage_reader=TensorDBReader(folder, "run"))
>>> found["step"], torch.equal(found["model"]["weight"], state["model"]["weight"])
(7, True)

What is saved so is a checkpoint like all others: `db.checkpoints` lists, tags, prunes and forks it, and
``db.checkpoints.load("run")`` gives its whole state, with the shards put together.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from contextlib import ExitStack
from copy import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from tensordb.checkpoints.checkpoint import Checkpoint
from tensordb.checkpoints.requests import Facts, check_name, check_step
from tensordb.checkpoints.sharded import KeyConfigs, ShardedCheckpoint
from tensordb.checkpoints.shards import part_name
from tensordb.checkpoints.tree import Leaf, flatten
from tensordb.encoding.presets import get_compression_preset
from tensordb.errors import ConflictError, IntegrityError, InvalidInputError
from tensordb.integrations.dcp_manifest import manifest_of, metadata_of, paths_of, stand_in, state_of
from tensordb.storage import TensorStorage
from tensordb.tensors import nbytes_of, plain

PathOrStorage = str | os.PathLike[str] | TensorStorage


class TensorDBWriter(StorageWriter):
    """Writes what `dcp.save` and `dcp.async_save` are given as a checkpoint of a run.

    Tensors whose content is stored already are not written again, and those that changed little since the run's newest
    checkpoint are stored as differences, shard by shard. Values that are no tensors go to the coordinator, which stores
    them as `db.checkpoints.save` does, or says by their path why it cannot; keys of dicts become text, as dcp has it.

    A writer can be used for many checkpoints: dcp's ``checkpoint_id``, a number, is then the step, and another text
    the run. What a rank wrote is safe from ``gc`` until its writer is used again, closed or dropped.

    Args:
        storage: Folder of the database, or a `TensorStorage`: each rank opens its folder for itself. One in memory is
            for a single process.
        run: Name of the run; it is made when it is new.
        step: An int from 0.
        epoch: A number from 0.
        metrics: Numbers by name.
        metadata: JSON-like values by name.
        preset: What to encode with: the name of a preset, a config, or those by key at the top of the state, such as
            ``{"model": "lossless", "optim": "int8_only"}``. Rules match the name behind that key. None follows the
            storage.

    Attributes:
        checkpoint: What was saved last, on the coordinator; None on the others.

    Raises:
        InvalidInputError: An argument is malformed.
    """

    def __init__(
        self,
        storage: PathOrStorage,
        run: str,
        *,
        step: int | None = None,
        epoch: float | None = None,
        metrics: Mapping[str, float] | None = None,
        metadata: Mapping[str, Any] | None = None,
        preset: Any = None,
    ) -> None:
        super().__init__()
        self._given = storage
        self._facts = Facts.of(run, step, epoch, metrics, metadata)
        self._preset = preset
        KeyConfigs.of(preset, get_compression_preset("lossless"))
        self._open: TensorStorage | None = None
        self._holding = ExitStack()
        self.checkpoint: Checkpoint | None = None

    def reset(self, checkpoint_id: str | os.PathLike[str] | int | None = None) -> None:
        """Begin another checkpoint: a number is its step, other text its run."""
        self.close()
        if checkpoint_id is not None:
            step, run = _step_or_text(checkpoint_id)
            self._facts = replace(self._facts, step=step) if run is None else replace(self._facts, run=run)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Open the database."""
        if not kwargs.get("use_collectives", True):
            raise InvalidInputError(
                "use_collectives=False makes a checkpoint of each rank; leave it out, so that one commit names all"
            )
        self.close()
        self.checkpoint = None
        self._open = _opened(self._given, read_only=False)
        if self._open is self._given:
            self._holding.enter_context(self._open.checkpoints.sharded.held())

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Return the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Return the plans as they are."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Store this rank's shards durably; nothing names them yet."""
        storage = self._storage()
        values = [item for item in plan.items if item.type == WriteItemType.BYTE_IO]
        shards = [item for item in plan.items if item.type != WriteItemType.BYTE_IO]
        results = [WriteResult(item.index, 0, (_value_of(item, planner),)) for item in values]
        results += [WriteResult(item.index, 0, None) for item in shards if not _has_values(item)]
        kept = [item for item in shards if _has_values(item)]
        sharded = storage.checkpoints.sharded
        stored = sharded.write(
            self._facts.run, (_leaf_of(item, planner) for item in kept), sharded.configs(self._preset)
        )
        results += [
            WriteResult(item.index, nbytes_of(each.tensor.spec), each) for item, each in zip(kept, stored, strict=True)
        ]
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit what all ranks wrote."""
        written = {result.index: result.storage_data for each in results for result in each}
        stand_ins: dict[MetadataIndex, torch.Tensor] = {}

        def part_of(index: MetadataIndex) -> torch.Tensor | None:
            if written[index] is None:
                return None
            return stand_ins.setdefault(index, torch.empty(1))

        def value_of(name: str, item: Any) -> Any:
            if isinstance(item, BytesStorageMetadata):
                return written[MetadataIndex(name)][0]
            return stand_in(item, lambda chunk: part_of(MetadataIndex(name, chunk.offsets)))

        tree = state_of(metadata, value_of)
        sharded = self._storage().checkpoints.sharded
        self.checkpoint = sharded.commit(
            self._facts,
            tree,
            {each.data_ptr(): written[index] for index, each in stand_ins.items()},
            lambda leaf_of: manifest_of(
                metadata, lambda index: leaf_of(stand_ins[index]) if index in stand_ins else None
            ),
            sharded.configs(self._preset),
        )
        self.close()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Tell whether this can be a checkpoint id."""
        return isinstance(checkpoint_id, str | os.PathLike | int)

    def close(self) -> None:
        """Close the database that this rank wrote through; doing it twice is fine."""
        self._holding.close()
        _close(self._open, self._given)
        self._open = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None, "_holding": ExitStack()}

    def _storage(self) -> TensorStorage:
        if self._open is None:
            raise ConflictError("the writer was not set up; it is for dcp.save and dcp.async_save")
        return self._open


class TensorDBReader(StorageReader):
    """Reads a checkpoint that `TensorDBWriter` wrote, for `dcp.load`: sharded as it was, otherwise, or not at all.

    All ranks have to find the same checkpoint; where a run grows meanwhile give `step`, or a checkpoint id as `run`.
    dcp's ``checkpoint_id`` stands for the step if it is a number, and else for `run`.

    Args:
        storage: Folder of the database, or a `TensorStorage`.
        run: Name of the run, or a checkpoint id.
        step: The newest checkpoint of this step.
        which: ``"latest"`` or a tag.
    """

    def __init__(self, storage: PathOrStorage, run: str, step: int | None = None, which: str = "latest") -> None:
        super().__init__()
        self._given = storage
        self._run, self._step, self._which = check_name(run, "run"), check_step(step), which
        self._open: TensorStorage | None = None
        self._found: ShardedCheckpoint | None = None
        self._metadata: Metadata | None = None

    def reset(self, checkpoint_id: str | os.PathLike[str] | int | None = None) -> None:
        """Begin to read another checkpoint: a number is its step, other text its run or its id."""
        self.close()
        if checkpoint_id is not None:
            step, run = _step_or_text(checkpoint_id)
            self._step, self._run = step, self._run if run is None else run

    def read_metadata(self, *args: Any) -> Metadata:
        """Find the checkpoint, and return what it consists of."""
        self._open = self._open or _opened(self._given, read_only=True)
        self._found = self._open.checkpoints.sharded.find(self._run, step=self._step, which=self._which)
        self._metadata = metadata_of(self._found.note)
        return self._metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any) -> None:
        """Take the metadata that was read."""
        self._metadata = metadata

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Add to the plan which checkpoint this rank found."""
        found, _ = self._checkpoint()
        return replace(plan, storage_data=found.checkpoint.id)

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Check that all ranks found the same checkpoint."""
        ids = {plan.storage_data for plan in plans}
        if len(ids) > 1:
            raise ConflictError(
                f"the ranks found different checkpoints ({', '.join(sorted(ids))}), since one was saved meanwhile; "
                "give its step, or its id as the run"
            )
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Decode what this rank asks for into its tensors."""
        found, metadata = self._checkpoint()
        assert self._open is not None
        sharded, leaves = self._open.checkpoints.sharded, metadata.storage_data
        values = [item for item in plan.items if item.type == LoadItemType.BYTE_IO]
        if values:
            state, paths = sharded.values(found, set(leaves.values())), paths_of(metadata)
            for item in values:
                _put_value(planner, item, _value_at(state, paths[item.storage_index.fqn]))
        boxes = [item for item in plan.items if item.type != LoadItemType.BYTE_IO]
        targets = [planner.resolve_tensor(item).detach() for item in boxes]

        def place(at: int, tensor: torch.Tensor) -> None:
            targets[at].copy_(tensor)

        sharded.read(
            found,
            [(leaves[item.storage_index], _index_of(item)) for item in boxes],
            place,
        )
        for item, target in zip(boxes, targets, strict=True):
            planner.commit_tensor(item, target)
        self.close()
        return _done(None)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Tell whether this can be a checkpoint id."""
        return isinstance(checkpoint_id, str | os.PathLike | int)

    def close(self) -> None:
        """Close the database that was opened for reading; doing it twice is fine."""
        _close(self._open, self._given)
        self._open = None
        self._found = self._metadata = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None, "_found": None, "_metadata": None}

    def _checkpoint(self) -> tuple[ShardedCheckpoint, Metadata]:
        if self._found is None or self._metadata is None:
            raise ConflictError("the reader was not set up; it is for dcp.load")
        return self._found, self._metadata


def _opened(given: PathOrStorage, *, read_only: bool) -> TensorStorage:
    """Return a database; one to write to is our own, whose segments stay locked until it is closed."""
    if not isinstance(given, TensorStorage):
        return TensorStorage(given, read_only=read_only)
    return given if read_only or given.checkpoints.sharded.in_memory else copy(given)


def _close(opened: TensorStorage | None, given: PathOrStorage) -> None:
    if opened is not None and opened is not given:
        opened.close()


def _step_or_text(checkpoint_id: Any) -> tuple[int | None, str | None]:
    """Return a dcp checkpoint id as a step, or as text."""
    if isinstance(checkpoint_id, int):
        return check_step(checkpoint_id), None
    text = check_name(os.fspath(checkpoint_id), "checkpoint_id")
    return (check_step(int(text)), None) if text.isascii() and text.isdigit() else (None, text)


def _has_values(item: WriteItem) -> bool:
    """Tell whether a shard is worth a part of its own: one without elements is not, unless it is the whole tensor."""
    data = item.tensor_data
    return data is None or data.chunk.sizes == data.size or 0 not in data.chunk.sizes


def _leaf_of(item: WriteItem, planner: SavePlanner) -> Leaf:
    name, data = item.index.fqn, item.tensor_data
    tensor = planner.resolve_data(item)
    try:
        values = plain(tensor)
    except InvalidInputError as error:
        raise InvalidInputError(f"{name}: {error}") from None
    if data is None or data.chunk.sizes == data.size:
        return Leaf(name, values)
    return Leaf(f"{name}.{part_name((tuple(data.chunk.offsets), tuple(data.chunk.sizes)))}", values)


def _value_of(item: WriteItem, planner: SavePlanner) -> Any:
    """Return a value that is no tensor as the state has it, before the planner pickles it."""
    name = item.index.fqn
    if not isinstance(planner, DefaultSavePlanner):
        raise InvalidInputError(
            f"{name} is no tensor, and a {type(planner).__name__} gives such values only pickled; derive it from "
            "DefaultSavePlanner, of which lookup_object is asked"
        )
    value = planner.lookup_object(item.index)
    _refuse_shards(name, value)
    flatten({name: value})
    return value


def _refuse_shards(name: str, value: Any) -> None:
    """Refuse what has to be gathered from all ranks, which this one alone cannot."""
    if isinstance(value, DTensor):
        raise InvalidInputError(f"{name} holds a DTensor where dcp does not look for one; use dicts and lists")
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for item in items:
        _refuse_shards(name, item)


def _put_value(planner: LoadPlanner, item: ReadItem, value: Any) -> None:
    """Put a value into the state that is loaded, as `DefaultLoadPlanner.load_bytes` does once it has unpickled it."""
    if not isinstance(planner, DefaultLoadPlanner) or type(planner).load_bytes is not DefaultLoadPlanner.load_bytes:
        raise InvalidInputError(
            f"{item.dest_index.fqn} is no tensor, and a {type(planner).__name__} takes such values only pickled; "
            "derive it from DefaultLoadPlanner, and leave load_bytes as it is"
        )
    if not planner.flatten_state_dict:
        planner.state_dict[item.dest_index.fqn] = value
        return
    path = planner.mappings[item.dest_index.fqn]
    container: Any = planner.original_state_dict
    for key, following in pairwise(path):
        if isinstance(container, MutableMapping):
            container = container.setdefault(key, {} if isinstance(following, str) else [])
        else:
            container = container[key]
    container[path[-1]] = value


def _value_at(state: Any, path: tuple[Any, ...]) -> Any:
    try:
        for key in path:
            state = state[key]
    except (LookupError, TypeError) as error:
        raise IntegrityError(
            f"the document of the checkpoint has nothing at {path!r}, where its manifest has"
        ) from error
    return state


def _index_of(item: ReadItem) -> tuple[slice, ...]:
    return tuple(
        slice(offset, offset + length) for offset, length in zip(item.storage_offsets, item.lengths, strict=True)
    )


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
