"""What is remembered of the catalog never outlives what it was true of."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tensordb import TensorStorage
from tensordb.errors import DatasetNotFoundError, TensorNotFoundError

from .programs import made, run

LOOKUPS = 30
"""Enough for rows to be remembered."""


def test_what_another_process_changed_is_seen(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "db") as db:
        db.create_dataset("d")
        keys = [db.insert("d", made(i, 6_000), record_id=f"{i}") for i in range(4)]
        for _ in range(LOOKUPS):
            db.get_many("d", keys)
        run("with TensorStorage(folder) as db: db.delete_dataset('d'); db.create_dataset('e')", tmp_path / "db")
        with pytest.raises(DatasetNotFoundError):
            db.get_tensor_by_id("d", keys[0])
        with pytest.raises(DatasetNotFoundError):
            db.insert("d", made(1, 3))
        assert db.count("e") == 0


def test_what_this_process_changed_is_seen_however_often_it_was_read_before(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "db") as db:
        db.create_dataset("d")
        keys = db.insert_many("d", [made(i, 6_000) for i in range(4)], [{"v": 1}] * 4)
        for _ in range(LOOKUPS):
            db.get_many("d", keys)
        db.update_tensor_metadata("d", keys[0], {"v": 2})
        assert db.get_tensor_by_id("d", keys[0]).metadata == {"v": 2}
        for _ in range(LOOKUPS):
            db.get_many("d", keys)
        db.delete_tensor("d", keys[1])
        with pytest.raises(TensorNotFoundError):
            db.get_tensor_by_id("d", keys[1])


def test_what_a_rollback_undid_is_forgotten(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "db") as db:
        db.create_dataset("kept")
        with contextlib.suppress(ZeroDivisionError), db.transaction():
            db.create_dataset("d")
            db.insert("d", made(1, 5))
            raise ZeroDivisionError
        for use in (lambda: db.insert("d", made(1, 5)), lambda: db.count("d"), lambda: db.get_dataset("d")):
            with pytest.raises(DatasetNotFoundError):
                use()
        db.create_dataset("d")
        assert db.count("d") == 0


def test_a_tensor_that_two_records_share_stays_until_both_are_deleted(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "db") as db:
        db.create_dataset("d")
        first, second = (db.insert("d", made(1, 9_000)) for _ in range(2))
        db.delete_tensor("d", first)
        db.maintenance.compact(min_dead=0)
        assert db.get_tensor_by_id("d", second).tensor.equal(made(1, 9_000))
        assert db.verify().ok


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files by /proc")
def test_a_reader_lets_go_of_the_files_that_others_remove(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    with TensorStorage(folder) as writer, TensorStorage(folder, read_only=True) as reader:
        writer.create_dataset("d")
        for number in range(6):
            key = writer.insert("d", made(number, 20_000))
            assert reader.query("d")[0].tensor.equal(made(number, 20_000))
            writer.delete_tensor("d", key)
            writer.maintenance.compact(min_dead=0)
        writer.insert("d", made(99, 20_000))
        assert len(reader.query("d")) == 1
        links = [each.readlink() for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
        assert len([each for each in links if str(each).startswith(str(folder)) and "(deleted)" in str(each)]) <= 1
