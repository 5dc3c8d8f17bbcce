"""gc and compact give space back, and never take what is named or about to be."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensordb import TensorStorage
from tensordb.errors import ConflictError

from .programs import finish, line, made, running, segment_names, stray_segments

LARGE = 30_000


@pytest.fixture
def db(tmp_path: Path) -> Iterator[TensorStorage]:
    with TensorStorage(tmp_path / "db") as db:
        db.create_dataset("d")
        yield db


def stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "segments").iterdir())


def everything(folder: Path) -> int:
    return stored(folder) + sum(path.stat().st_size for path in folder.glob("catalog.duckdb*"))


def test_gc_removes_what_nobody_names_and_keeps_the_rest(db: TensorStorage, tmp_path: Path) -> None:
    gone = db.insert("d", made(1, LARGE))
    db.maintenance.compact()  # from here on another segment is written
    kept = db.insert("d", made(2, LARGE))
    assert len(segment_names(tmp_path / "db")) == 2
    db.delete_tensor("d", gone)
    report = db.maintenance.gc()
    assert report.segments_removed == 1
    assert report.nbytes_freed > 4 * LARGE * 0.5
    assert stray_segments(db) == []
    assert db.get_tensor_by_id("d", kept).tensor.equal(made(2, LARGE))
    assert db.maintenance.gc().segments_removed == 0


def test_compact_gives_the_space_of_deleted_records_back(db: TensorStorage, tmp_path: Path) -> None:
    ids = [db.insert("d", made(seed, LARGE)) for seed in range(20)]
    small = [db.insert("d", made(seed, 30)) for seed in range(50)]
    views = db.get_many("d", ids)
    for key in ids[1:]:
        db.delete_tensor("d", key)
    before = stored(tmp_path / "db")
    report = db.maintenance.compact()
    assert stored(tmp_path / "db") < before / 10
    assert report.nbytes_after == everything(tmp_path / "db")
    assert report.nbytes_freed == report.nbytes_before - report.nbytes_after
    assert report.payloads_moved == 51
    assert stray_segments(db) == []
    assert db.verify().ok
    assert [record.tensor.equal(made(seed, LARGE)) for seed, record in enumerate(views)] == [True] * 20
    assert all(record.tensor.equal(made(seed, 30)) for seed, record in enumerate(db.get_many("d", small)))
    assert db.maintenance.compact().payloads_moved == 0


def test_compact_of_quiet_segments_moves_only_what_is_worth_it(db: TensorStorage) -> None:
    ids = [db.insert("d", made(seed, LARGE)) for seed in range(4)]
    db.delete_tensor("d", ids[0])
    assert db.maintenance.compact(min_dead=0.5).payloads_moved == 0
    assert db.maintenance.compact(min_dead=0.2).payloads_moved == 3
    assert db.verify().ok


@pytest.mark.parametrize("verb", ["gc", "compact"])
def test_neither_runs_inside_a_transaction_whose_rollback_needs_the_segments(db: TensorStorage, verb: str) -> None:
    key = db.insert("d", made(1, LARGE))
    with contextlib.suppress(ZeroDivisionError), db.transaction():
        db.delete_tensor("d", key)
        with pytest.raises(ConflictError, match="transaction"):
            getattr(db.maintenance, verb)()
        raise ZeroDivisionError
    assert db.get_tensor_by_id("d", key).tensor.equal(made(1, LARGE))
    with db.transaction():
        with pytest.raises(ConflictError, match="transaction"):
            getattr(db.maintenance, verb)()
        other = db.insert("d", made(2, LARGE))
    assert db.get_tensor_by_id("d", other).tensor.equal(made(2, LARGE))


def test_gc_of_another_process_spares_what_a_running_insert_has_yet_to_commit(
    db: TensorStorage, tmp_path: Path
) -> None:
    code = """
        db = TensorStorage(folder)
        def tensors():
            for seed in range(5):
                yield made(seed, 100_000)
            for request in sys.stdin:
                say("waiting")
                if request == "go on\\n":
                    return
        db.insert_many("d", tensors(), record_ids=list("abcde"))
        say("done")
    """
    with running(code, tmp_path / "db") as writer:
        writer.stdin.write("\n")
        assert line(writer) == "waiting"
        db.insert("d", made(9, LARGE))
        for _ in range(3):
            db.maintenance.gc()
            db.maintenance.compact(min_dead=0)
        writer.stdin.write("go on\n")
        assert finish(writer).split() == ["waiting", "done"]
    assert db.count("d") == 6
    assert all(db.get_tensor_by_id("d", key).tensor.equal(made(i, 100_000)) for i, key in enumerate("abcde"))
    db.maintenance.gc()
    assert db.verify().ok


def test_gc_of_another_thread_spares_what_a_running_insert_has_yet_to_commit(db: TensorStorage) -> None:
    written, go_on = threading.Event(), threading.Event()

    def tensors() -> Iterator[object]:
        for seed in range(5):
            yield made(seed, 100_000)
        written.set()
        assert go_on.wait(60)

    thread = threading.Thread(target=lambda: db.insert_many("d", tensors(), record_ids=list("abcde")))  # type: ignore[arg-type]
    thread.start()
    assert written.wait(60)
    db.maintenance.gc()
    db.maintenance.compact(min_dead=0)
    go_on.set()
    thread.join()
    assert db.verify().records == 5
    assert db.verify().ok


def test_a_rolled_back_insert_leaves_bytes_that_gc_or_compact_reclaim(db: TensorStorage, tmp_path: Path) -> None:
    with contextlib.suppress(ZeroDivisionError), db.transaction():
        db.insert("d", made(1, LARGE))
        raise ZeroDivisionError
    assert len(stray_segments(db)) == 1
    assert db.maintenance.gc().segments_removed == 1
    assert segment_names(tmp_path / "db") == []


def test_a_record_inserted_again_while_its_old_payload_is_dead_is_kept(db: TensorStorage) -> None:
    for _ in range(4):
        key = db.insert("d", made(1, LARGE))
        db.delete_tensor("d", key)
        again = db.insert("d", made(1, LARGE))
        db.maintenance.compact(min_dead=0)
        assert db.get_tensor_by_id("d", again).tensor.equal(made(1, LARGE))
        db.delete_tensor("d", again)
    db.maintenance.gc()
    assert stray_segments(db) == []


def test_compact_ends_while_another_thread_keeps_inserting(db: TensorStorage) -> None:
    stop = threading.Event()

    def insert() -> None:
        seed = 0
        while not stop.is_set():
            db.insert("d", made(seed, 20), {"seed": seed})
            seed += 1

    thread = threading.Thread(target=insert)
    thread.start()
    try:
        for _ in range(3):
            db.maintenance.compact(min_dead=0)
    finally:
        stop.set()
        thread.join()
    assert db.verify().ok
