"""The writing half of `tensordb.integrations.dcp`: every rank its shards, the coordinator the commit.

Invariant: what a rank wrote stays locked until its writer is used again, closed or dropped, which none is before dcp
told all ranks of the commit; the coordinator looks for what it names once more, in case a rank was killed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from tensordb.checkpoints.checkpoint import Checkpoint
from tensordb.checkpoints.requests import Facts
from tensordb.checkpoints.roles import KeyConfigs
from tensordb.checkpoints.tree import Leaf, flatten
from tensordb.checkpoints.tree.shards import part_name
from tensordb.encoding.presets import get_compression_preset
from tensordb.errors import ConflictError, InvalidInputError
from tensordb.integrations.dcp_manifest import manifest_of, stand_in, state_of
from tensordb.integrations.dcp_naming import PathOrStorage, is_checkpoint_id, step_or_text
from tensordb.storage import TensorStorage
from tensordb.tensors import nbytes_of, plain


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
            step, run = step_or_text(checkpoint_id)
            self._facts = replace(self._facts, step=step) if run is None else replace(self._facts, run=run)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Open the database."""
        if not kwargs.get("use_collectives", True):
            raise InvalidInputError(
                "use_collectives=False makes a checkpoint of each rank; leave it out, so that one commit names all"
            )
        self.close()
        self.checkpoint = None
        self._open = _opened(self._given)
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
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

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
        return is_checkpoint_id(checkpoint_id)

    def close(self) -> None:
        """Close the database that this rank wrote through; doing it twice is fine."""
        self._holding.close()
        opened, self._open = self._open, None
        if opened is not None and opened is not self._given:
            opened.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None, "_holding": ExitStack()}

    def _storage(self) -> TensorStorage:
        if self._open is None:
            raise ConflictError("the writer was not set up; it is for dcp.save and dcp.async_save")
        return self._open


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


def _opened(given: PathOrStorage) -> TensorStorage:
    """Return a database of our own, whose segments stay locked until we close it; in memory there is only the one."""
    if not isinstance(given, TensorStorage):
        return TensorStorage(given)
    return given if given.checkpoints.sharded.in_memory else copy(given)
