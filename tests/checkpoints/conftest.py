from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tensordb import TensorStorage


@pytest.fixture(params=["folder", "memory"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TensorStorage]:
    with TensorStorage(tmp_path / "db" if request.param == "folder" else None) as storage:
        yield storage
