"""Every promise about weights is checked on disk and in memory alike."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from storage.kept import Kept

from tensordb import TensorStorage
from tensordb.weights.accessor import Weights


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
def weights(db: TensorStorage) -> Weights:
    """The weights of an empty database."""
    return db.weights
