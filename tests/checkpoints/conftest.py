from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from storage.kept import Kept

from tensordb import TensorStorage


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """The databases that the tests of a module share."""
    with closing(Kept(tmp_path_factory.mktemp("kept"))) as databases:
        yield databases


@pytest.fixture(params=["folder", "memory"])
def db(request: pytest.FixtureRequest, kept: Kept) -> Iterator[TensorStorage]:
    with kept.lent(request.param) as opened:
        yield opened
