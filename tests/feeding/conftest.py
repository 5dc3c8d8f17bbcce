"""Databases that feed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tensordb import TensorStorage

COUNT = 600


def rows(count: int = COUNT) -> torch.Tensor:
    """Return records of 1.2 KB whose first element is their number."""
    made = torch.randn(count, 300, generator=torch.Generator().manual_seed(0))
    made[:, 0] = torch.arange(count)
    return made


def fields(first: int, last: int) -> list[dict[str, object]]:
    """Return metadata of records."""
    return [
        {"n": n, "label": n % 7, "text": f"t{n}", "deep": {"er": n / 2}, "some": None if n % 2 else n}
        for n in range(first, last)
    ]


def fill(db: TensorStorage) -> TensorStorage:
    """Insert `rows` into a dataset `d`, most of them in small pages and the last five one by one."""
    db.create_dataset("d")
    made = rows()
    last = COUNT - 5
    for start in range(0, last, 85):
        end = min(start + 85, last)
        db.insert_many("d", made[start:end], fields(start, end))
    for n in range(last, COUNT):
        db.insert("d", made[n], fields(n, n + 1)[0], record_id=f"mine-{n}")
    return db


@pytest.fixture
def db(tmp_path: Path) -> Iterator[TensorStorage]:
    """A database with `COUNT` records in a dataset `d`."""
    with TensorStorage(tmp_path / "data.tdb") as opened:
        yield fill(opened)
