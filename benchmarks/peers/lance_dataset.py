"""A Lance dataset with a fixed-size-list column for the tensors, as Lance stores embeddings.

Lance never calls fsync, so each insert here is followed by an fsync of the files it made and of their folders. The
index of ids is built after a bulk load and is not part of its time.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peers.base import Metadata, Store

METADATA = ("token", "split", "score")
# Batches of this many rows or bytes let Lance encode one while it writes another: twice as fast as one large batch.
BATCH_ROWS = 8_192
BATCH_BYTES = 8 * 1024 * 1024


class LanceDataset(Store):
    """Records found by id through a BTREE index: the job that the other stores do."""

    name = "lance"
    package = "lance"
    import_statement = "import lance"
    durability = "Lance does not sync: fsync of every new file and its folder after each commit"

    def __init__(self, path: Path) -> None:
        import lance

        super().__init__(path)
        self._lance = lance
        self._synced: set[str] = set()
        self._dataset: Any = lance.dataset(str(path)) if path.exists() else None
        self._count = self._dataset.count_rows() if self._dataset is not None else 0

    def insert_many(self, tensors: Tensor | Iterable[Tensor], metadata: Sequence[Metadata]) -> list[str]:
        """Write one fragment, from memory or as a stream of batches."""
        ids = self._new_ids(len(metadata))
        self._append(_batches(ids, tensors, metadata))
        return ids

    def insert(self, tensor: Tensor, metadata: Metadata) -> str:
        """Append a fragment of one row."""
        return self.insert_many(tensor[None], [metadata])[0]

    def prepare_reads(self) -> None:
        """Join the fragments and index the ids."""
        self._dataset.optimize.compact_files()
        self._dataset.create_scalar_index("id", "BTREE")
        self._dataset = self._lance.dataset(str(self.path))

    def get(self, record_id: str) -> Tensor:
        """Look up one id through the index."""
        return _tensors(self._dataset.to_table(filter=f"id = '{record_id}'", columns=["tensor"]))[0]

    def get_many(self, record_ids: Sequence[str]) -> list[Tensor]:
        """Look up ids with one `IN` list, and put them into the order asked."""
        wanted = ",".join(f"'{record_id}'" for record_id in record_ids)
        table = self._dataset.to_table(filter=f"id IN ({wanted})", columns=["id", "tensor"])
        found = dict(zip(table["id"].to_pylist(), _tensors(table), strict=True))
        return [found[record_id] for record_id in record_ids]

    def page(self, offset: int, limit: int) -> list[Tensor]:
        """Scan with an offset, which Lance serves in insertion order."""
        return _tensors(self._dataset.to_table(columns=["tensor"], offset=offset, limit=limit))

    def count_below(self, score: float) -> int:
        """Count by a scan; no index exists on the field."""
        return int(self._dataset.count_rows(filter=f"score < {score!r}"))

    def query_below(self, score: float) -> list[Tensor]:
        """Select by a scan; no index exists on the field."""
        return _tensors(self._dataset.to_table(filter=f"score < {score!r}", columns=["tensor"]))

    def _new_ids(self, count: int) -> list[str]:
        self._count += count
        return [f"{number:08d}" for number in range(self._count - count, self._count)]

    def _append(self, batches: Iterator[Any]) -> None:
        import pyarrow as pa

        first = next(batches)
        reader = pa.RecordBatchReader.from_batches(first.schema, itertools.chain([first], batches))
        target = self._dataset if self._dataset is not None else str(self.path)
        mode = "create" if self._dataset is None else "append"
        self._dataset = self._lance.write_dataset(reader, target, mode=mode)
        self._sync()

    def _sync(self) -> None:
        for folder, _, names in os.walk(self.path):
            new = [path for name in names if (path := f"{folder}/{name}") not in self._synced]
            for path in [*new, folder] if new else []:
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
            self._synced.update(new)


class LanceByRow(LanceDataset):
    """The same dataset read by row number: for callers who already know where each record lies, no lookup needed."""

    name = "lance by row"

    def get(self, record_id: str) -> Tensor:
        """Take one row."""
        return _tensors(self._dataset.take([int(record_id)], columns=["tensor"]))[0]

    def get_many(self, record_ids: Sequence[str]) -> list[Tensor]:
        """Take rows, in the order asked."""
        return _tensors(self._dataset.take([int(record_id) for record_id in record_ids], columns=["tensor"]))


def _batches(ids: list[str], tensors: Tensor | Iterable[Tensor], metadata: Sequence[Metadata]) -> Iterator[Any]:
    if isinstance(tensors, Tensor):
        whole = _batch(ids, tensors, metadata)
        yield from (whole.slice(start, BATCH_ROWS) for start in range(0, len(ids), BATCH_ROWS))
        return
    source, start = iter(tensors), 0
    while first := list(itertools.islice(source, 1)):
        rows = torch.stack(first + list(itertools.islice(source, max(1, BATCH_BYTES // first[0].nbytes) - 1)))
        yield _batch(ids[start : start + len(rows)], rows, metadata[start : start + len(rows)])
        start += len(rows)


def _batch(ids: list[str], rows: Tensor, metadata: Sequence[Metadata]) -> Any:
    import pyarrow as pa

    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.numpy().reshape(-1)), rows[0].numel())
    fields = {name: pa.array([fields[name] for fields in metadata]) for name in METADATA}
    return pa.record_batch({"id": pa.array(ids), **fields, "tensor": column})


def _tensors(table: Any) -> list[Tensor]:
    # Arrow's memory is read-only to its users: one copy makes the rows owned.
    column = table["tensor"].combine_chunks()
    values = torch.from_numpy(column.flatten().to_numpy(zero_copy_only=True).copy())
    return list(values.view(len(column), -1))
