"""A transaction whose COMMIT fails is never taken for done, whatever its last write was."""

import resource
import signal
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
import torch

from tensordb import AlreadyExistsError, StoreError, TensorStorage


def _insert_and_delete(db: TensorStorage) -> None:
    db.delete_tensor("d", db.insert("d", torch.ones(3)))


def _create_and_drop(db: TensorStorage) -> None:
    db.create_dataset("tmp")
    db.delete_dataset("tmp")


def _update_to_the_same(db: TensorStorage) -> None:
    db.update_tensor_metadata("d", "kept", {"a": 1})


def _write_beyond_the_limit(db: TensorStorage, folder: Path, tail: Callable[[TensorStorage], None], hard: int) -> None:
    with db.transaction():
        for i in range(200):
            db.insert("d", torch.rand(1000) + i)
        tail(db)
        size = (folder / "catalog.duckdb.wal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 4096, hard))


@pytest.mark.parametrize("tail", [lambda db: None, _insert_and_delete, _create_and_drop, _update_to_the_same])
def test_a_commit_that_does_not_fit_on_the_disk_loses_nothing_silently(
    tmp_path: Path, tail: Callable[[TensorStorage], None]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with TensorStorage(tmp_path) as db:
        db.create_dataset("d")
        db.insert("d", torch.ones(3), {"a": 1}, record_id="kept")
        try:
            with pytest.raises(StoreError):
                _write_beyond_the_limit(db, tmp_path, tail, limits[1])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert db.count("d") == 1
        db.insert("d", torch.ones(3))
        assert db.count("d") == 2
        assert db.verify().ok


def test_what_stops_a_statement_in_the_middle_is_told_and_not_what_follows_from_it(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db:
        db.create_dataset("d")
    with duckdb.connect(str(tmp_path / "catalog.duckdb")) as con:  # a rule of somebody else's
        con.execute("CREATE UNIQUE INDEX one_of_each ON tensordb.records_1 (object_id)")
    with TensorStorage(tmp_path) as db:
        with pytest.raises(AlreadyExistsError, match="UNIQUE constraint"):
            db.insert_many("d", torch.zeros(5, 3))
        assert db.count("d") == 0
