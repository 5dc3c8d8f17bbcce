"""The reading half of `tensordb.integrations.dcp`: each rank decodes what its shards touch, and unpickles nothing."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from tensordb.checkpoints.requests import check_name, check_step
from tensordb.checkpoints.sharded import ShardedCheckpoint, Wanted
from tensordb.errors import ConflictError, IntegrityError, InvalidInputError
from tensordb.integrations.dcp_manifest import metadata_of, paths_of
from tensordb.integrations.dcp_naming import PathOrStorage, is_checkpoint_id, step_or_text
from tensordb.storage import TensorStorage


class TensorDBReader(StorageReader):
    """Reads a checkpoint that `TensorDBWriter` wrote, for `dcp.load`: sharded as it was, otherwise, or not at all.

    All ranks have to find the same checkpoint; where a run grows meanwhile give `step`, or a checkpoint id as `run`.
    dcp's ``checkpoint_id`` stands for the step if it is a number, and else for `run`.

    Args:
        storage: Folder of the database, or a `TensorStorage`.
        run: Name of the run, or a checkpoint id.
        step: The newest checkpoint of this step.
        which: ``"latest"``, a tag, or ``"best"`` where the run has one metric, of which the smallest is best.
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
            step, run = step_or_text(checkpoint_id)
            self._step, self._run = step, self._run if run is None else run

    def read_metadata(self, *args: Any) -> Metadata:
        """Find the checkpoint, and return what it consists of."""
        self._open = self._open or _opened(self._given)
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
        wanted = [
            Wanted(leaves[item.storage_index], _index_of(item), target)
            for item, target in zip(boxes, targets, strict=True)
        ]
        sharded.read(found, wanted)
        for item, target in zip(boxes, targets, strict=True):
            planner.commit_tensor(item, target)
        self.close()
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Tell whether this can be a checkpoint id."""
        return is_checkpoint_id(checkpoint_id)

    def close(self) -> None:
        """Close the database that was opened for reading; doing it twice is fine."""
        opened, self._open = self._open, None
        if opened is not None and opened is not self._given:
            opened.close()
        self._found = self._metadata = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None, "_found": None, "_metadata": None}

    def _checkpoint(self) -> tuple[ShardedCheckpoint, Metadata]:
        if self._found is None or self._metadata is None:
            raise ConflictError("the reader was not set up; it is for dcp.load")
        return self._found, self._metadata


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


def _opened(given: PathOrStorage) -> TensorStorage:
    return given if isinstance(given, TensorStorage) else TensorStorage(given, read_only=True)
