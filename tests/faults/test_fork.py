"""fork with the database open: parent and child go on, and nothing that either committed is lost."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tensordb import TensorStorage
from tensordb.errors import ConflictError

from .programs import fork, in_forked_child, made, run, run_each

SIZES = (50, 30_000)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[TensorStorage]:
    with TensorStorage(tmp_path / "db") as db:
        db.create_dataset("d")
        yield db


def put(db: TensorStorage, first: int, count: int = 4) -> None:
    for seed in range(first, first + count):
        db.insert("d", made(seed, SIZES[seed % 2]), {"seed": seed}, record_id=str(seed))


def holds(db: TensorStorage, *seeds: int) -> None:
    """The database holds exactly these records, and each is right."""
    found = {int(record.id): record for record in db.scan("d")}
    assert sorted(found) == sorted(seeds)
    assert all(record.tensor.equal(made(seed, SIZES[seed % 2])) for seed, record in found.items())
    assert db.verify().ok


def test_parent_and_child_both_go_on_writing_and_nothing_is_lost(db: TensorStorage, tmp_path: Path) -> None:
    put(db, 0)  # committed, and only in the write-ahead log

    def child() -> None:
        holds(db, *range(4))
        put(db, 4)
        holds(db, *range(8))

    in_forked_child(child)
    put(db, 8)
    holds(db, *range(12))
    db.close()
    with TensorStorage(tmp_path / "db") as again:
        holds(again, *range(12))


def test_a_child_that_does_nothing_harms_nothing(db: TensorStorage, tmp_path: Path) -> None:
    put(db, 0)
    in_forked_child(lambda: None)
    put(db, 4)
    in_forked_child(db.close)
    holds(db, *range(8))
    with TensorStorage(tmp_path / "db") as again:
        holds(again, *range(8))


def test_parent_and_child_write_at_the_same_time(db: TensorStorage) -> None:
    put(db, 0)
    child = fork()
    if not child:
        try:
            put(db, 100, 30)
            os._exit(0)
        finally:
            os._exit(1)
    put(db, 200, 30)
    assert os.waitpid(child, 0)[1] == 0
    holds(db, *range(4), *range(100, 130), *range(200, 230))


PARENT = """
db = TensorStorage(folder)
db.create_dataset("d")
for seed in range(5):
    db.insert("d", made(seed, 50))
if os.fork():
    os.wait()
    db.insert("d", made(5, 30_000))
    assert db.count("d") == {expected}
else:
    {work}
    {leaving}
"""
WORK = 'assert db.count("d") == 5; db.insert("d", made(99, 30_000)); db.insert("d", made(98, 50))'


def test_however_a_child_ends_the_parent_keeps_everything(tmp_path: Path) -> None:
    endings = ["os._exit(0)", "pass", "os.kill(os.getpid(), 9)"]
    cases = [(work, count, leaving) for work, count in (("pass", 6), (WORK, 8)) for leaving in endings]
    run_each([PARENT.format(work=work, expected=count, leaving=leaving) for work, count, leaving in cases], tmp_path)
    for number, (_, count, _) in enumerate(cases):
        with TensorStorage(tmp_path / str(number)) as db:
            assert db.count("d") == count
            assert db.verify().ok


def test_a_fork_inside_a_transaction_leaves_the_transaction_to_the_parent(db: TensorStorage, tmp_path: Path) -> None:
    put(db, 0, 2)

    def child() -> None:
        for act in (lambda: put(db, 50, 1), lambda: db.count("d"), lambda: db.transaction().__enter__()):
            with pytest.raises(ConflictError, match="forked inside a transaction"):
                act()

    with db.transaction():
        put(db, 2, 2)
        in_forked_child(child)
        put(db, 4, 2)
    holds(db, *range(6))
    put(db, 6)
    holds(db, *range(10))


def test_a_child_forked_inside_a_transaction_can_open_the_folder_for_itself(db: TensorStorage, tmp_path: Path) -> None:
    go_on, ready = os.pipe()
    with db.transaction():
        put(db, 0)
        child = fork()
        if not child:
            try:
                os.read(go_on, 1)
                with TensorStorage(tmp_path / "db") as own:
                    holds(own, *range(4))
                    put(own, 4)
                os._exit(0)
            finally:
                os._exit(1)
    os.write(ready, b"!")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(go_on)
    os.close(ready)
    holds(db, *range(8))


def test_a_child_that_leaves_the_block_of_its_parents_transaction_gets_an_error(tmp_path: Path) -> None:
    code = """
        db = TensorStorage(folder)
        db.create_dataset("d")
        child = None
        try:
            with db.transaction():
                db.insert("d", made(1, 30_000))
                child = os.fork()
                if child:
                    os.waitpid(child, 0)
        except ConflictError as error:
            assert not child and "fork" in str(error)
            os._exit(0)
        assert child
        db.insert("d", made(2, 50))
        say(db.count("d"))
    """
    assert run(code, tmp_path / "db") == "2\n"
    with TensorStorage(tmp_path / "db") as db:
        assert db.count("d") == 2
        assert db.verify().ok


def test_forks_while_other_threads_read_and_write_hang_nobody(db: TensorStorage) -> None:
    put(db, 0, 20)
    stop, failures = threading.Event(), []

    def read() -> None:
        try:
            while not stop.is_set():
                holds_all(db, 20)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(15):
            in_forked_child(lambda: holds_all(db, 20))
            put(db, 1000 + int(db.count("d")), 1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


def holds_all(db: TensorStorage, count: int) -> None:
    for record in db.get_many("d", [str(seed) for seed in range(count)]):
        seed = int(record.id)
        assert record.tensor.equal(made(seed, SIZES[seed % 2]))


def worker(db: TensorStorage, first: int) -> None:
    put(db, first)
    holds_all(db, 4)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_of_multiprocessing_use_the_storage_that_they_are_given(db: TensorStorage, method: str) -> None:
    put(db, 0)
    context = multiprocessing.get_context(method)
    firsts = (100, 200) if method == "fork" else (100,)
    processes = [context.Process(target=worker, args=(db, first)) for first in firsts]  # type: ignore[attr-defined]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert {process.exitcode for process in processes} == {0}
    holds(db, *range(4), *(seed for first in firsts for seed in range(first, first + 4)))


def test_a_view_of_the_parent_s_is_whole_in_a_child_and_survives_it(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "db", compression_preset="none") as db:
        db.create_dataset("d")
        tensor = torch.arange(50_000.0)
        key = db.insert("d", tensor)
        seen = db.get_tensor_by_id("d", key, copy=False).tensor

        def child() -> None:
            # By bytes: torch's own threads are not there after a fork, and what would use them waits for ever.
            assert seen.numpy().tobytes() == tensor.numpy().tobytes()
            again = db.get_tensor_by_id("d", key, copy=False).tensor
            assert again.numpy().tobytes() == tensor.numpy().tobytes()

        in_forked_child(child)
        assert seen.equal(tensor)
