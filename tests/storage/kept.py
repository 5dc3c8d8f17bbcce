"""Databases that the tests of a module use one after the other: each finds an empty one, and few wait for a new one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tensordb import TensorStorage
from tensordb.errors import TensorDBError

MOST_TESTS = 30
"""That one database serves, which holds on to what they stored until then."""
MOST_DELETIONS = 6
"""Of datasets, runs and weights: they take as long as opening a new database does."""


class Kept:
    """An open database on disk and one in memory, each emptied after the test that used it.

    One that a test closed, or left unusable, is replaced by a new one. Tests that count files, or look at what a
    database is before anything was in it, open their own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._free: dict[str, tuple[TensorStorage, int]] = {}
        self._made = 0

    @contextmanager
    def lent(self, place: str) -> Iterator[TensorStorage]:
        """Give an empty database for as long as the block lasts."""
        db, uses = self._free.pop(place, None) or (self._new(place), 0)
        try:
            yield db
        finally:
            if uses < MOST_TESTS and emptied(db):
                self._free[place] = (db, uses + 1)
            else:
                db.close()

    def close(self) -> None:
        """Close what is open; what every test deleted left no payload behind."""
        for db, _ in self._free.values():
            with db:
                assert db.sql("SELECT object_id FROM tensordb.objects").num_rows == 0

    def _new(self, place: str) -> TensorStorage:
        self._made += 1
        return TensorStorage(None if place == "memory" else self._folder / f"{self._made}.tdb")


def emptied(db: TensorStorage) -> bool:
    """Make a database what a new one is to its users; tell whether that could be done, and sooner than by a new one."""
    try:
        db.checkpoints.wait()
        deletions = [
            *(partial(db.delete_dataset, name) for name in db.list_datasets()),
            *(partial(db.checkpoints.delete_run, run) for run in db.checkpoints.runs()),
            *(partial(db.weights.delete_delta, each) for each in {each.hash for each in db.weights.list_deltas()}),
            *(partial(db.weights.delete, each.hash) for each in db.weights.list_weights()),
        ]
        if len(deletions) > MOST_DELETIONS:
            return False
        if deletions:
            with db.transaction():
                for delete in deletions:
                    delete()
    except TensorDBError:
        return False
    db.set_compression_preset("lossless")
    db.cache.clear()
    return True
