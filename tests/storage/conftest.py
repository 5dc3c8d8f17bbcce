"""Every promise of the façade is checked on disk and in memory alike."""

from collections.abc import Iterator
from contextlib import closing

import pytest
import torch

from tensordb import TensorStorage

from .kept import Kept


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """The databases that the tests of a module share."""
    with closing(Kept(tmp_path_factory.mktemp("kept"))) as databases:
        yield databases


@pytest.fixture(params=["disk", "memory"])
def db(request: pytest.FixtureRequest, kept: Kept) -> Iterator[TensorStorage]:
    """An empty database."""
    with kept.lent(request.param) as opened:
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
