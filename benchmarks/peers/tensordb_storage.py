"""tensordb as its users call it, with default settings (preset `lossless`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from peers.base import Metadata, Store

DATASET = "benchmark"


class TensorDBStorage(Store):
    """One dataset of one database folder."""

    name = "tensordb"
    package = "tensordb"
    import_statement = "import tensordb"
    durability = "payload fdatasync, then the catalog's commit"

    def __init__(self, path: Path) -> None:
        # Imported late, so that a peer's memory is measured in a process that has not loaded tensordb.
        from tensordb import TensorStorage

        super().__init__(path)
        self._db = TensorStorage(path)
        if not self._db.dataset_exists(DATASET):
            self._db.create_dataset(DATASET)

    def insert_many(self, tensors: Tensor | Iterable[Tensor], metadata: Sequence[Metadata]) -> list[str]:
        """Insert in one atomic commit."""
        return list(self._db.insert_many(DATASET, tensors, metadata))

    def insert(self, tensor: Tensor, metadata: Metadata) -> str:
        """Insert one record."""
        return str(self._db.insert(DATASET, tensor, metadata))

    def get(self, record_id: str) -> Tensor:
        """Return a record's tensor."""
        tensor: Tensor = self._db.get_tensor_by_id(DATASET, record_id).tensor
        return tensor

    def get_many(self, record_ids: Sequence[str]) -> list[Tensor]:
        """Return the tensors of many records."""
        return [record.tensor for record in self._db.get_many(DATASET, record_ids)]

    def page(self, offset: int, limit: int) -> list[Tensor]:
        """Return the tensors of one page."""
        return [record.tensor for record in self._db.get_records_paginated(DATASET, offset, limit)]

    def count_below(self, score: float) -> int:
        """Count by a condition written as SQL; no index exists on the field."""
        return int(self._db.count(DATASET, f"metadata.score < {score!r}"))

    def query_below(self, score: float) -> list[Tensor]:
        """Query by a bound condition; no index exists on the field."""
        return [record.tensor for record in self._db.query(DATASET, "metadata.score < ?", params=[score])]

    def payload_bytes(self) -> int | None:
        """Return what the store itself reports: headers and checksums included, metadata not."""
        return int(self._db.get_compression_stats().stored_nbytes)

    def close(self) -> None:
        """Close the database."""
        self._db.close()
