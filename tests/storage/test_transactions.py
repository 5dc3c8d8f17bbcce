"""transaction(): all or nothing over any number of operations and datasets."""

# ruff: noqa: PT012 - what is tested is the block

import threading
from pathlib import Path

import pytest
import torch

from tensordb import (
    AlreadyExistsError,
    ConflictError,
    DatabaseBusyError,
    DatasetNotFoundError,
    InvalidInputError,
    InvalidQueryError,
    SchemaValidationError,
    TensorNotFoundError,
    TensorStorage,
)

from .tensors import same


class OwnError(Exception):
    pass


def state(db: TensorStorage) -> dict[str, list[tuple[str, dict, bytes]]]:
    return {
        name: [(r.id, r.metadata, r.tensor.numpy().tobytes()) for r in db.get_dataset_with_metadata(name)]
        for name in db.list_datasets()
    }


def do_everything(db: TensorStorage) -> None:
    db.insert("data", torch.randn(4), {"step": 50, "brand_new": 1.5})
    db.insert("data", torch.randn(100_000))
    db.insert_many("data", torch.randn(40, 3), [{"other": n} for n in range(40)])
    db.update_tensor_metadata("data", "r1", {"step": "now text"})
    db.delete_tensor("data", "r2")
    db.delete_where("data", "record_id = 'r3'")
    db.create_dataset("made", {"dtype": "float32"})
    db.insert("made", torch.ones(3), {"x": {"y": [1]}})
    db.delete_dataset("second")


def test_everything_in_a_block_happens_together(runs: TensorStorage) -> None:
    runs.create_dataset("second")
    with runs.transaction():
        do_everything(runs)
        inside = state(runs)
    assert state(runs) == inside
    assert runs.list_datasets() == ["data", "made"]
    assert runs.count("data") == 50
    assert runs.verify().ok


def test_an_exception_undoes_everything_and_reaches_the_caller(runs: TensorStorage) -> None:
    runs.create_dataset("second")
    runs.insert("second", torch.ones(5), {"a": 1})
    before, stats = state(runs), runs.get_compression_stats()
    for _ in range(2):
        with pytest.raises(OwnError), runs.transaction():
            do_everything(runs)
            assert state(runs) != before
            raise OwnError
        assert state(runs) == before
        assert runs.get_compression_stats() == stats
        assert runs.query("data", "metadata.step < 3")
    do_everything(runs)
    assert runs.count("made") == 1
    assert runs.verify().ok


def test_what_was_undone_is_gone_after_reopening_and_what_was_done_is_there(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "db") as db:
        db.create_dataset("data")
        with db.transaction():
            kept = db.insert("data", torch.arange(5.0), {"a": 1})
        with pytest.raises(OwnError), db.transaction():
            db.insert("data", torch.randn(200_000), {"b": 1})
            raise OwnError
    with TensorStorage(tmp_path / "db") as db:
        assert [record.id for record in db.query("data")] == [kept]
        with pytest.raises(InvalidQueryError, match="b"):
            db.query("data", "metadata.b = 1")
        db.maintenance.gc()
        assert db.verify().ok


def test_a_block_sees_its_own_writes(data: TensorStorage) -> None:
    with data.transaction():
        small, large = data.insert("data", torch.ones(3), {"n": 1}), data.insert("data", torch.ones(200_000))
        assert data.get_tensor_by_id("data", small).tensor.sum() == 3
        assert data.get_tensor_by_id("data", large).tensor.sum() == 200_000
        assert data.count("data", "metadata.n = 1") == 1
        assert len(list(data.scan("data"))) == len(data.sample_dataset("data", 9)) == 2
        assert data.sql("SELECT count(*) AS n FROM data").column("n").to_pylist() == [2]
        assert data.get_compression_stats("data").records == 2


def test_a_tensor_of_an_undone_block_can_be_inserted_again(data: TensorStorage) -> None:
    for size in (10, 100_000):
        tensor = torch.randn(size)
        with pytest.raises(OwnError), data.transaction():
            data.get_tensor_by_id("data", data.insert("data", tensor, record_id="x"))
            raise OwnError
        data.maintenance.gc()
        data.insert("data", tensor, record_id="x")
        assert same(data.get_tensor_by_id("data", "x").tensor, tensor)
        data.delete_tensor("data", "x")


def test_a_dataset_of_an_undone_block_leaves_no_schema_or_config_behind(db: TensorStorage) -> None:
    with pytest.raises(OwnError), db.transaction():
        db.create_dataset("data", {"dtype": "float32"}, compression_preset="int8_only")
        db.insert("data", torch.randn(100))
        raise OwnError
    with pytest.raises(DatasetNotFoundError):
        db.insert("data", torch.randn(100))
    db.create_dataset("data", compression_preset="fp16_only")
    db.insert("data", torch.arange(3))
    assert db.get_tensor_by_id("data", db.insert("data", torch.randn(100))).encoding.quantization == "fp16"


def test_blocks_nest(runs: TensorStorage) -> None:
    with runs.transaction():
        runs.delete_tensor("data", "r0")
        with runs.transaction():
            runs.delete_tensor("data", "r1")
            with runs.transaction():
                runs.delete_tensor("data", "r2")
    assert runs.count("data") == 7
    with pytest.raises(OwnError), runs.transaction():
        runs.delete_tensor("data", "r3")
        with runs.transaction():
            runs.delete_tensor("data", "r4")
        raise OwnError
    assert runs.count("data") == 7


def test_an_inner_block_that_failed_after_writing_undoes_the_whole_even_when_its_error_is_swallowed(
    runs: TensorStorage,
) -> None:
    with pytest.raises(ConflictError, match=r"rolled back|roll back") as caught, runs.transaction():
        runs.delete_tensor("data", "r0")
        with pytest.raises(OwnError), runs.transaction():
            runs.delete_tensor("data", "r1")
            raise OwnError("the reason")
    assert "the reason" in str(caught.value)
    assert runs.count("data") == 10


def test_an_inner_block_that_failed_before_writing_does_not_undo_the_outer(runs: TensorStorage) -> None:
    with runs.transaction():
        runs.delete_tensor("data", "r0")
        with pytest.raises(TensorNotFoundError), runs.transaction():
            runs.count("data")
            runs.delete_tensor("data", "nope")
    assert runs.count("data") == 9


def test_errors_found_before_anything_changed_may_be_handled_inside(runs: TensorStorage) -> None:
    runs.create_dataset("strict", {"dtype": "int64", "metadata": {"k": "int"}})
    with runs.transaction():
        runs.insert("data", torch.zeros(4), {"step": 10}, record_id="r10")
        with pytest.raises(TensorNotFoundError):
            runs.get_tensor_by_id("data", "nope")
        with pytest.raises(TensorNotFoundError):
            runs.update_tensor_metadata("data", "nope", {})
        with pytest.raises(AlreadyExistsError):
            runs.insert("data", torch.zeros(4), {"novel": 1}, record_id="r10")
        with pytest.raises(AlreadyExistsError):
            runs.insert_many("data", torch.zeros(2, 4), record_ids=["r11", "r1"])
        with pytest.raises(AlreadyExistsError):
            runs.create_dataset("data")
        with pytest.raises(DatasetNotFoundError):
            runs.insert("nope", torch.zeros(4))
        with pytest.raises(DatasetNotFoundError):
            runs.delete_dataset("nope")
        with pytest.raises(SchemaValidationError):
            runs.insert("strict", torch.zeros(4), {"k": 1})
        with pytest.raises(InvalidInputError):
            runs.insert("data", torch.zeros(4), {"bad": object()})
        runs.insert("data", torch.zeros(4), {"step": 11}, record_id="r11")
    assert runs.count("data") == 12
    assert runs.count("strict") == 0


def test_a_bad_condition_inside_never_leaves_half_of_a_block(runs: TensorStorage) -> None:
    def block() -> None:
        with runs.transaction():
            runs.delete_tensor("data", "r0")
            with pytest.raises(InvalidQueryError):
                runs.query("data", "metadata.nope = 1")
            runs.delete_tensor("data", "r1")

    try:
        block()
    except ConflictError:
        assert runs.count("data") == 10
    else:
        assert runs.count("data") == 8


def test_nothing_changed_is_fine(runs: TensorStorage) -> None:
    with runs.transaction():
        pass
    with runs.transaction():
        assert runs.count("data") == 10
    with pytest.raises(OwnError), runs.transaction():
        raise OwnError
    assert runs.count("data") == 10


def test_other_threads_wait_for_a_block_and_see_all_of_it_or_nothing(data: TensorStorage) -> None:
    begun, seen = threading.Event(), []

    def look() -> None:
        begun.wait(10)
        seen.append(data.count("data"))

    thread = threading.Thread(target=look)
    thread.start()
    with data.transaction():
        data.insert("data", torch.zeros(1))
        begun.set()
        for _ in range(5):
            data.insert("data", torch.zeros(1))
    thread.join(20)
    assert seen in ([0], [6])


def test_waiting_for_a_block_is_bounded(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "db", busy_timeout=0.1) as db:
        db.create_dataset("data")
        errors: list[BaseException] = []

        def write() -> None:
            try:
                db.insert("data", torch.zeros(1))
            except DatabaseBusyError as error:
                errors.append(error)

        with db.transaction():
            db.insert("data", torch.zeros(1))
            thread = threading.Thread(target=write)
            thread.start()
            thread.join(20)
        assert len(errors) == 1
        assert db.count("data") == 1
        write()
        assert db.count("data") == 2
