"""Every promise about weights is checked on disk and in memory alike."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tensordb import TensorStorage
from tensordb.weights.accessor import Weights


@pytest.fixture(params=["disk", "memory"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TensorStorage]:
    """An empty database."""
    with TensorStorage(tmp_path / "data.tdb" if request.param == "disk" else None) as opened:
        yield opened


@pytest.fixture
def weights(db: TensorStorage) -> Weights:
    """The weights of an empty database."""
    return db.weights
