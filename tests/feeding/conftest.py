"""Databases that feed: filled once, copied for each test that writes, and shared by those that only read."""

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tensordb import TensorStorage

COUNT = 600


@functools.cache
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


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a database with `COUNT` records in a dataset `d`, which nobody changes."""
    folder = tmp_path_factory.mktemp("filled") / "data.tdb"
    with TensorStorage(folder) as opened:
        fill(opened)
    return folder


@pytest.fixture
def db(filled: Path, tmp_path: Path) -> Iterator[TensorStorage]:
    """A copy of it to write to, at ``data.tdb`` in the folder of the test."""
    with TensorStorage(shutil.copytree(filled, tmp_path / "data.tdb")) as opened:
        yield opened


@pytest.fixture(scope="module")
def shared(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TensorStorage]:
    """A copy of it that only reads are made of."""
    with TensorStorage(shutil.copytree(filled, tmp_path_factory.mktemp("shared") / "data.tdb")) as opened:
        yield opened
