"""Databases to move data into and out of, and the selection that data leaves by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from storage.kept import Kept
from storage.tensors import same

from tensordb import TensorStorage
from tensordb.exchange.exporting import Export


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """The databases that the tests of a module share."""
    with closing(Kept(tmp_path_factory.mktemp("kept"))) as databases:
        yield databases


@pytest.fixture
def db(kept: Kept) -> Iterator[TensorStorage]:
    """An empty database."""
    with kept.lent("disk") as opened:
        yield opened


def out_of(db: TensorStorage, name: str, where: str | None = None, **options: Any) -> Export:
    """Return a selection of records, as a dataset's own verbs see it."""
    return Export(db._db, name, where, **options)


def assert_equal(db: TensorStorage, left: str, right: str, *, metadata: bool = True) -> None:
    """Assert that two datasets hold the same tensors bit by bit, and the same metadata of the same types."""
    a, b = db.get_dataset_with_metadata(left), db.get_dataset_with_metadata(right)
    assert len(a) == len(b)
    for ours, theirs in zip(a, b, strict=True):
        assert same(ours.tensor, theirs.tensor), (ours, theirs)
        if metadata:
            assert repr(ours.metadata) == repr(theirs.metadata)  # tells 1 from 1.0 and True, and NaN is NaN
