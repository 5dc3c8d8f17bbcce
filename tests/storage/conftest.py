"""Every promise of the façade is checked on disk and in memory alike."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tensordb import TensorStorage


@pytest.fixture(params=["disk", "memory"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TensorStorage]:
    """An empty database."""
    with TensorStorage(tmp_path / "data.tdb" if request.param == "disk" else None) as opened:
        yield opened


@pytest.fixture
def data(db: TensorStorage) -> TensorStorage:
    """The database with an empty dataset `data`."""
    db.create_dataset("data")
    return db


@pytest.fixture
def runs(data: TensorStorage) -> TensorStorage:
    """The database with 10 records in `data`: step 0 to 9, loss falling from 1.0, tag "even" or "odd"."""
    for step in range(10):
        data.insert(
            "data",
            torch.full((4,), float(step)),
            {"step": step, "loss": 1.0 - step / 10, "tag": "odd" if step % 2 else "even"},
            record_id=f"r{step}",
        )
    return data
