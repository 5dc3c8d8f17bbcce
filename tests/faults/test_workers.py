"""DataLoader workers that read through the storage: the right tensors, forked or spawned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from tensordb import TensorStorage

from .programs import made


class Rows(Dataset[Any]):
    """Records by number; the storage is opened by whoever makes the dataset."""

    def __init__(self, db: TensorStorage, ids: list[str]) -> None:
        self.db, self.ids = db, ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> tuple[int, torch.Tensor]:
        record = self.db.get_tensor_by_id("d", self.ids[number])
        return record.metadata["seed"], record.tensor


class Batches(Rows):
    """The same, a batch at a time."""

    def __getitems__(self, numbers: list[int]) -> list[tuple[int, torch.Tensor]]:
        found = self.db.get_many("d", [self.ids[number] for number in numbers])
        return [(record.metadata["seed"], record.tensor) for record in found]


class Stream(IterableDataset[Any]):
    """Each worker scans its share."""

    def __init__(self, db: TensorStorage) -> None:
        self.db = db

    def __iter__(self) -> Any:
        info = get_worker_info()
        assert info is not None
        where = f"metadata.seed % {info.num_workers} = {info.id}"
        return ((record.metadata["seed"], record.tensor) for record in self.db.scan("d", where))


def filled(folder: Path) -> tuple[TensorStorage, list[str]]:
    db = TensorStorage(folder)
    db.create_dataset("d")
    ids = [db.insert("d", made(seed, 300), {"seed": seed}) for seed in range(10)]
    rows = torch.stack([made(seed, 300) for seed in range(10, 40)])
    ids += db.insert_many("d", rows, [{"seed": seed} for seed in range(10, 40)])
    db.set_compression_preset("none")
    ids += [db.insert("d", made(seed, 300), {"seed": seed}) for seed in range(40, 44)]
    return db, ids


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_loader_workers_read_the_right_tensors_epoch_after_epoch(tmp_path: Path, method: str) -> None:
    db, ids = filled(tmp_path / "db")
    kinds: list[Any] = (
        [Batches(db, ids), Stream(db)] if method == "spawn" else [Rows(db, ids), Batches(db, ids), Stream(db)]
    )
    for data in kinds:
        loader = DataLoader(
            data,
            batch_size=7,
            num_workers=1 if method == "spawn" and isinstance(data, Batches) else 2,
            persistent_workers=True,
            multiprocessing_context=method,
            shuffle=None if isinstance(data, IterableDataset) else True,
        )
        for epoch in range(2):
            seen: dict[int, torch.Tensor] = {}
            for seeds, tensors in loader:
                seen.update(zip(seeds.tolist(), tensors, strict=True))
            assert sorted(seen) == list(range(44))
            assert all(tensor.equal(made(seed, 300)) for seed, tensor in seen.items())
            # The parent writes between the epochs, while its workers live on.
            db.insert("d", made(1000 + epoch, 50_000), {"note": epoch})
        del loader
    assert db.verify().ok
    db.close()
