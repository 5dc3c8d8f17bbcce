"""Opening, closing, reopening, pickling and refusing."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
import torch

from tensordb import (
    ConflictError,
    DatabaseBusyError,
    FormatError,
    InvalidInputError,
    ReadOnlyError,
    StoreError,
    TensorDBError,
    TensorStorage,
)

from .tensors import same


def contents(folder: Path) -> dict[Path, bytes]:
    """Return every file but the locks, where a holder leaves its name."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("lock", "gate"))
    return {path: path.read_bytes() for path in files}


class PathOfOnesOwn:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


@pytest.mark.parametrize("kind", [str, Path, PathOfOnesOwn])
def test_a_folder_is_created_and_keeps_everything(tmp_path: Path, kind) -> None:
    folder = tmp_path / "new" / "ünter ordner's.tdb"
    tensor = torch.randn(100_000)
    with TensorStorage(kind(folder)) as db:
        db.create_dataset("data")
        ids = [db.insert("data", tensor, {"a": 1}), db.insert("data", tensor[:9])]
    assert (folder / "catalog.duckdb").is_file()
    with TensorStorage(kind(folder)) as db:
        assert [record.id for record in db.query("data")] == ids
        assert same(db.get_tensor_by_id("data", ids[0]).tensor, tensor)
        assert db.get_tensor_by_id("data", ids[0]).metadata == {"a": 1}
        assert db.insert("data", tensor) not in ids


def test_a_relative_path_and_a_changed_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with TensorStorage("db") as db:
        db.create_dataset("data")
        monkeypatch.chdir(tmp_path / "elsewhere")
        record_id = db.insert("data", torch.ones(100_000))
        assert db.get_tensor_by_id("data", record_id).tensor.sum() == 100_000
    assert os.listdir(tmp_path / "elsewhere") == []


def test_close_twice_is_fine_and_a_closed_storage_says_so(db: TensorStorage) -> None:
    db.create_dataset("data")
    record_id = db.insert("data", torch.ones(3))
    record = db.get_tensor_by_id("data", record_id)
    db.close()
    db.close()
    for call in (
        lambda: db.insert("data", torch.ones(3)),
        lambda: db.get_tensor_by_id("data", record_id),
        lambda: db.query("data"),
        lambda: db.list_datasets(),
        lambda: db.create_dataset("x"),
        lambda: db.sql("SELECT 1"),
    ):
        with pytest.raises(ConflictError, match="closed"):
            call()
    assert record.tensor.sum() == 3
    assert "TensorStorage" in repr(db)


def test_tensors_stay_valid_after_close(db: TensorStorage) -> None:
    db.create_dataset("data", compression_preset="none")
    tensor = torch.randn(200_000)
    record = db.get_tensor_by_id("data", db.insert("data", tensor))
    db.close()
    assert same(record.tensor, tensor)


def test_in_memory_databases_are_separate_and_gone_when_closed() -> None:
    with TensorStorage(None) as first, TensorStorage(None) as second:
        first.create_dataset("data")
        assert second.list_datasets() == []
    with TensorStorage(None) as again:
        assert again.list_datasets() == []


def test_an_unwritable_path_is_an_error_and_never_a_database_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (file, file / "below", "/proc/nowhere/db"):
        with pytest.raises(StoreError) as caught:
            TensorStorage(path)
        assert str(path) in str(caught.value)
    assert file.read_text() == "mine"
    for path in ("", "  ", 5, b"bytes", ["a"], "a\0b"):
        with pytest.raises(TensorDBError):
            TensorStorage(path)  # type: ignore[arg-type]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError):
            TensorStorage(tmp_path / "db")
    finally:
        tmp_path.chmod(0o700)


def test_read_only_reads_and_refuses_every_write(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "db") as db:
        db.create_dataset("data")
        record_id = db.insert("data", torch.ones(3), {"a": 1})
        large = db.insert("data", torch.ones(100_000))
    before = contents(tmp_path / "db")
    with TensorStorage(tmp_path / "db", read_only=True) as db:
        assert db.get_tensor_by_id("data", record_id).tensor.sum() == 3
        assert db.get_tensor_by_id("data", large).tensor.sum() == 100_000
        assert db.count("data", "metadata.a = 1") == 1
        assert db.sql("FROM data").num_rows == 2
        assert db.verify().ok
        for call in (
            lambda: db.create_dataset("x"),
            lambda: db.delete_dataset("data"),
            lambda: db.insert("data", torch.ones(3)),
            lambda: db.insert("data", torch.ones(100_001)),
            lambda: db.insert_many("data", torch.ones(3, 3)),
            lambda: db.update_tensor_metadata("data", record_id, {}),
            lambda: db.delete_tensor("data", record_id),
            lambda: db.delete_where("data", "true"),
            lambda: db.transaction().__enter__(),
            lambda: db.maintenance.gc(),
            lambda: db.maintenance.compact(),
        ):
            with pytest.raises(ReadOnlyError, match="read"):
                call()
        assert "read_only" in repr(db)
    assert contents(tmp_path / "db") == before


def test_read_only_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(TensorDBError):
        TensorStorage(tmp_path / "missing", read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_two_storages_in_one_process_share_a_folder(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "db") as writer, TensorStorage(tmp_path / "db", read_only=True) as reader:
        writer.create_dataset("data")
        tensor = torch.randn(50_000)
        for _ in range(3):
            record_id = writer.insert("data", tensor, {"a": 1})
            assert same(reader.get_tensor_by_id("data", record_id).tensor, tensor)
            writer.delete_tensor("data", record_id)
            writer.maintenance.compact(min_dead=0)
            assert reader.count("data") == 0


def test_looking_up_by_id_sees_what_another_storage_changed(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "db") as first, TensorStorage(tmp_path / "db") as second:
        first.create_dataset("data")
        ids = first.insert_many("data", torch.arange(20.0).reshape(20, 1), [{"n": n} for n in range(20)])
        for round_number in range(1, 3):
            for _ in range(2):
                assert [first.get_tensor_by_id("data", each).metadata["n"] for each in ids] == list(
                    range(20 * (round_number - 1), 20 * round_number)
                )
            for n, record_id in enumerate(ids):
                second.update_tensor_metadata("data", record_id, {"n": 20 * round_number + n})


def test_settings_of_a_dataset_replaced_by_another_storage_are_noticed(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "db") as first, TensorStorage(tmp_path / "db") as second:
        first.create_dataset("data", {"dtype": "float32"}, compression_preset="int8_only")
        first.insert("data", torch.randn(100))
        second.delete_dataset("data")
        second.create_dataset("data", compression_preset="fp16_only")
        record = first.get_tensor_by_id("data", first.insert("data", torch.randn(100)))
        assert record.encoding.quantization == "fp16"
        second.delete_dataset("data")
        second.create_dataset("data", {"dtype": "int64"})
        first.insert("data", torch.arange(5))
        assert second.count("data") == 1


def test_a_newer_format_is_refused_and_left_untouched(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "db") as db:
        db.create_dataset("data")
        db.insert("data", torch.ones(3))
    catalog = tmp_path / "db" / "catalog.duckdb"
    with duckdb.connect(str(catalog)) as con:
        con.execute("UPDATE tensordb.info SET value = '999' WHERE name = 'format'")
    before = contents(tmp_path / "db")
    for read_only in (False, True):
        with pytest.raises(FormatError, match="999"):
            TensorStorage(tmp_path / "db", read_only=read_only)
    assert contents(tmp_path / "db") == before


def test_a_catalog_that_is_no_database_is_refused_and_left_untouched(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    folder.mkdir()
    (folder / "catalog.duckdb").write_bytes(b"not a database " * 1000)
    for read_only in (False, True):
        with pytest.raises(TensorDBError):
            TensorStorage(folder, read_only=read_only)
    assert (folder / "catalog.duckdb").read_bytes() == b"not a database " * 1000


def test_pickling_reopens_the_same_folder_with_the_same_settings(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "db", compression_preset="fp16_only", busy_timeout=7) as db:
        db.create_dataset("data")
        record_id = db.insert("data", torch.randn(64), {"a": 1})
        for clone in (pickle.loads(pickle.dumps(db)), copy.deepcopy(db)):
            with clone:
                assert same(
                    clone.get_tensor_by_id("data", record_id).tensor, db.get_tensor_by_id("data", record_id).tensor
                )
                added = clone.insert("data", torch.randn(64))
                assert db.get_tensor_by_id("data", added).encoding.quantization == "fp16"
    with TensorStorage(tmp_path / "db", read_only=True) as db, pickle.loads(pickle.dumps(db)) as clone:
        with pytest.raises(ReadOnlyError):
            clone.insert("data", torch.ones(1))
        assert clone.count("data") == 3


def test_a_database_in_memory_cannot_be_pickled() -> None:
    with TensorStorage(None) as db, pytest.raises(InvalidInputError, match="memory"):
        pickle.dumps(db)


def test_a_busy_timeout_that_makes_no_sense_is_refused() -> None:
    for seconds in (-1, "3", None, float("nan"), True, float("inf")):
        with pytest.raises(InvalidInputError, match="busy_timeout"):
            TensorStorage(None, busy_timeout=seconds)  # type: ignore[arg-type]


def test_a_folder_held_by_a_transaction_elsewhere_is_busy_after_the_timeout(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "db") as db, TensorStorage(tmp_path / "db", busy_timeout=0.2) as other:
        db.create_dataset("data")
        with db.transaction():
            db.insert("data", torch.ones(1))
            with pytest.raises(DatabaseBusyError):
                other.count("data")
        assert other.count("data") == 1


def test_a_script_that_forgets_to_close_exits_silently_and_loses_nothing(tmp_path: Path) -> None:
    script = """
import sys, torch
from tensordb import TensorStorage
db = TensorStorage(sys.argv[1])
db.create_dataset("data")
db.insert("data", torch.ones(3), record_id="small")
db.insert("data", torch.ones(100_000), record_id="large")
rest = db.scan("data")
next(rest)
db.sql("SELECT 1")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "db")], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with TensorStorage(tmp_path / "db") as db:
        assert [record.id for record in db.query("data")] == ["small", "large"]
        assert db.verify().ok
