"""Reading a checkpoint: whole or in part, decoded on all cores or when asked for.

What is needed is found in one catalog block and decoded after it; a checkpoint deleted meanwhile is read to its end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import duckdb
import torch

from tensordb.catalog import checkpoint_documents, checkpoint_tensors, checkpoints
from tensordb.catalog.checkpoints import CheckpointRow
from tensordb.checkpoints.lazy import LazyTensor
from tensordb.checkpoints.placing import placed
from tensordb.checkpoints.tree import tensor_paths, unflatten
from tensordb.engine import Database, ObjectSource
from tensordb.engine.contents import on_all_cores
from tensordb.errors import IntegrityError
from tensordb.tensors import byte_view, nbytes_of


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A checkpoint ready to be read.

    Attributes:
        names: Full names of the tensors that it needs, by their positions.
        sources: What they are stored as.
    """

    row: CheckpointRow
    document: bytes
    names: dict[int, str]
    sources: dict[int, ObjectSource]
    wanted: Callable[[str], bool] | None

    def tree(self, db: Database, *, device: torch.device | None, lazy: bool) -> Any:
        """Return the state, each tensor decoded, or left to be read later."""
        if lazy:
            return unflatten(
                self.document,
                lambda position: LazyTensor(db, self.names[position], self.sources[position], device),
                wanted=self.wanted,
            )
        decoded = self._decode(db, device)
        return unflatten(self.document, decoded.__getitem__, wanted=self.wanted)

    def _decode(self, db: Database, device: torch.device | None) -> dict[int, torch.Tensor]:
        decoded: dict[int, torch.Tensor] = {}

        def work(position: int) -> None:
            name = f"tensor {self.names[position]!r} of checkpoint step {self.row.step} of run {self.row.run!r}"
            # The states of generators live on the CPU, wherever what they draw does.
            place = None if self.names[position].startswith("rng.") else device
            decoded[position] = placed(db.sources.decode(name, self.sources[position]), place)

        positions = list(self.sources)
        sizes = [nbytes_of(self.sources[position].reader.spec) for position in positions]
        on_all_cores(sizes, range(len(positions)), lambda at: work(positions[at]))
        return decoded


def open_checkpoint(
    db: Database, con: duckdb.DuckDBPyConnection, row: CheckpointRow, wanted: Callable[[str], bool] | None
) -> Opened:
    """Find what a checkpoint, or the part of it that is wanted, is stored as; inside a catalog block."""
    document = document_of(db, con, row)
    rows = checkpoint_tensors.of_checkpoint(con, row.number)
    if wanted is not None:
        needed = {index for path, indices in tensor_paths(document).items() if wanted(path) for index in indices}
        rows = [each for each in rows if each.position in needed]
    where = f"of checkpoint step {row.step} of run {row.run!r}"
    found = db.sources.open(con, {each.object_id: f"tensor {each.name!r} {where}" for each in rows})
    return Opened(
        row,
        document,
        {each.position: each.name for each in rows},
        {each.position: found[each.object_id] for each in rows},
        wanted,
    )


def document_of(db: Database, con: duckdb.DuckDBPyConnection, row: CheckpointRow) -> bytes:
    """Return a checkpoint's document, with its note if it has one; inside a catalog block."""
    document, object_id = checkpoints.document(con, row.number)
    if object_id is None:
        try:
            return checkpoint_documents.check(document, row.facts)
        except IntegrityError as error:
            raise IntegrityError(f"checkpoint step {row.step} of run {row.run!r}: {error}") from error
    name = f"the document of checkpoint step {row.step} of run {row.run!r}"
    tensor = db.sources.decode(name, db.sources.open(con, {object_id: name})[object_id])
    if tensor.dtype != torch.uint8:
        raise IntegrityError(f"{name} is stored as {tensor.dtype}, not as bytes")
    return byte_view(tensor).tobytes()
