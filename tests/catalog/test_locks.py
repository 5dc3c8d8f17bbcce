"""The locks below a lease: among threads, and among processes through files."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from tensordb.catalog.lock_holder import leave_note, read_note
from tensordb.catalog.lock_thread import FairLock
from tensordb.catalog.locks import CatalogLocks, excludes
from tensordb.errors import DatabaseBusyError, StoreError


def soon() -> float:
    return time.monotonic() + 20


def until(condition: object) -> None:
    deadline = soon()
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.001)


def in_thread(lock: FairLock, log: list[int], number: int) -> threading.Thread:
    def work() -> None:
        assert lock.acquire(20)
        log.append(number)
        lock.release()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_waiting_threads_are_served_in_the_order_they_came() -> None:
    lock, log = FairLock(), []
    lock.acquire(0)
    threads = []
    for number in range(8):
        threads.append(in_thread(lock, log, number))
        until(lambda number=number: len(lock._waiting) == number + 1)
    lock.release()
    for thread in threads:
        thread.join(20)
    assert log == list(range(8))


def test_a_thread_that_comes_back_at_once_does_not_starve_the_others() -> None:
    lock, log = FairLock(), []
    lock.acquire(0)
    other = in_thread(lock, log, 1)
    until(lambda: lock._waiting)
    lock.release()
    assert lock.acquire(20)
    assert log == [1]
    lock.release()
    other.join(20)


def test_a_thread_may_take_its_own_lock_again_and_others_wait_for_the_last_release() -> None:
    lock, seen = FairLock(), []
    assert lock.acquire(0)
    assert lock.acquire(0)
    lock.release()
    thread = threading.Thread(target=lambda: seen.append(lock.acquire(0.01)))
    thread.start()
    thread.join(20)
    assert seen == [False]
    lock.release()
    in_thread(lock, seen, 7).join(20)
    assert seen == [False, 7]


def test_a_thread_that_gave_up_waiting_is_not_handed_the_lock() -> None:
    lock = FairLock()
    lock.acquire(0)
    thread = threading.Thread(target=lambda: lock.acquire(0.01))
    thread.start()
    thread.join(20)
    lock.release()
    assert lock.acquire(0)


def test_one_file_excludes_and_two_files_do_not(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "a", tmp_path / "b"]
    first, same, other = (os.open(path, os.O_RDWR | os.O_CREAT) for path in paths)
    try:
        assert excludes(first, same)
        assert not excludes(first, other)
    finally:
        for descriptor in (first, same, other):
            os.close(descriptor)


def test_readers_share_and_a_writer_is_alone(tmp_path: Path) -> None:
    one, two, three = (CatalogLocks(tmp_path, read_only=False) for _ in range(3))
    one.acquire(exclusive=False, deadline=soon())
    two.acquire(exclusive=False, deadline=0)
    with pytest.raises(DatabaseBusyError, match=f"process {os.getpid()}"):
        three.acquire(exclusive=True, deadline=0)
    one.release()
    two.release()
    three.acquire(exclusive=True, deadline=0)
    with pytest.raises(DatabaseBusyError, match="to read"):
        one.acquire(exclusive=False, deadline=0)
    for locks in (one, two, three):
        locks.close()


def test_a_waiting_writer_is_seen_and_new_readers_stay_behind_it(tmp_path: Path) -> None:
    reader, late, writer = (CatalogLocks(tmp_path, read_only=False) for _ in range(3))
    reader.acquire(exclusive=False, deadline=soon())
    assert not reader.wanted()
    waiting = threading.Thread(target=lambda: writer.acquire(exclusive=True, deadline=soon()))
    waiting.start()
    until(reader.wanted)
    with pytest.raises(DatabaseBusyError):
        late.acquire(exclusive=False, deadline=0)
    reader.release()
    waiting.join(20)
    with pytest.raises(DatabaseBusyError):
        late.acquire(exclusive=False, deadline=0)
    writer.release()
    late.acquire(exclusive=False, deadline=soon())
    for locks in (reader, late, writer):
        locks.close()


def test_a_copy_closed_by_another_holder_of_the_file_keeps_the_lock(tmp_path: Path) -> None:
    locks, other = CatalogLocks(tmp_path, read_only=False), CatalogLocks(tmp_path, read_only=False)
    locks.acquire(exclusive=True, deadline=soon())
    copy = os.dup(locks._lock)
    os.close(copy)
    with pytest.raises(DatabaseBusyError):
        other.acquire(exclusive=True, deadline=0)
    locks.close()
    other.acquire(exclusive=True, deadline=0)
    other.close()


def test_a_folder_that_does_not_exist_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        CatalogLocks(tmp_path / "nowhere", read_only=False).prove_exclusion()


@pytest.mark.parametrize("note", [b"", b"{", b"[1]", b"null", b'{"pid": 1}', b"\xff\xfe", b'{"pid":"x","host":1}'])
def test_a_damaged_note_only_loses_the_name_of_the_holder(tmp_path: Path, note: bytes) -> None:
    (tmp_path / "lock").write_bytes(note)
    assert read_note(tmp_path / "lock") is None
    locks, other = CatalogLocks(tmp_path, read_only=True), CatalogLocks(tmp_path, read_only=True)
    locks.acquire(exclusive=True, deadline=soon())
    with pytest.raises(DatabaseBusyError, match="no note"):
        other.acquire(exclusive=True, deadline=0)
    assert (tmp_path / "lock").read_bytes() == note
    locks.close()
    other.close()


def test_a_note_tells_process_program_host_and_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_bytes(b"x" * 1000)
    descriptor = os.open(path, os.O_RDWR)
    leave_note(descriptor)
    os.close(descriptor)
    assert set(json.loads(path.read_bytes())) == {"pid", "host", "program", "since"}
    assert str(read_note(path)).startswith(f"process {os.getpid()} (")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_too_full_for_the_note_stops_nothing() -> None:
    descriptor = os.open("/dev/full", os.O_RDWR)
    leave_note(descriptor)
    os.close(descriptor)
