"""What a lease leaves in its folder, and when it lets the files go."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

from tensordb.catalog.lease import CatalogLease
from tensordb.catalog.lease_session import SMALL_WAL
from tensordb.errors import DatabaseBusyError, NotFoundError, StoreError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def lease(folder: Path) -> Iterator[CatalogLease]:
    lease = CatalogLease(folder, read_only=False, busy_timeout=20)
    with lease.connection(write=True) as connection:
        connection.execute("CREATE TABLE t (i BIGINT)")
    yield lease
    lease.close()


def add(lease: CatalogLease, value: int) -> None:
    with lease.connection(write=True) as connection:
        connection.execute("INSERT INTO t VALUES (?)", [value])


def values(lease: CatalogLease) -> list[int]:
    with lease.connection(write=False) as connection:
        return [value for (value,) in connection.execute("SELECT i FROM t ORDER BY i").fetchall()]


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.002)


def test_a_read_only_lease_changes_no_file(lease: CatalogLease, folder: Path) -> None:
    add(lease, 1)
    lease.close()
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    reader = CatalogLease(folder, read_only=True, busy_timeout=20)
    assert values(reader) == [1]
    reader.close()
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before


def test_reading_where_nothing_was_created_is_not_found(folder: Path) -> None:
    reader = CatalogLease(folder, read_only=True, busy_timeout=1)
    with pytest.raises(NotFoundError, match="no database"), reader.connection(write=False):
        pass
    reader.close()
    assert not (folder / "catalog.duckdb").exists()


def test_another_program_with_the_file_open_is_waited_for_and_then_named(lease: CatalogLease, folder: Path) -> None:
    lease.close()
    foreign = duckdb.connect(str(folder / "catalog.duckdb"))
    impatient = CatalogLease(folder, read_only=False, busy_timeout=0.1)
    with pytest.raises(DatabaseBusyError, match="DuckDB reports"):
        add(impatient, 1)
    foreign.close()
    add(impatient, 2)
    assert values(impatient) == [2]
    impatient.close()


def test_a_grown_log_is_moved_into_the_file_when_idle_so_that_no_commit_pays_for_it(
    lease: CatalogLease, folder: Path
) -> None:
    with lease.connection(write=True) as connection:
        connection.execute("INSERT INTO t SELECT i FROM range(100000) r(i)")
        connection.execute("CREATE TABLE payloads AS SELECT repeat('x', 1000) || i AS p FROM range(2000) r(i)")
        connection.executemany("INSERT INTO payloads VALUES (?)", [["y" * 50_000] for _ in range(60)])
    log, epoch = folder / "catalog.duckdb.wal", lease.epoch
    assert log.stat().st_size > SMALL_WAL
    eventually(lambda: not log.exists() or log.stat().st_size < SMALL_WAL)
    assert len(values(lease)) == 100_000
    assert lease.epoch == epoch


def test_a_lease_that_is_idle_for_long_lets_even_programs_without_our_locks_in(
    lease: CatalogLease, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensordb.catalog.lease_session.IDLE_CLOSE", 0.05)
    add(lease, 1)

    def opens() -> bool:
        try:
            duckdb.connect(str(folder / "catalog.duckdb")).close()
        except duckdb.ConnectionException:
            return False
        return True

    eventually(opens)
    add(lease, 2)
    assert values(lease) == [1, 2]


def test_only_the_catalog_and_its_lock_files_are_left_behind(lease: CatalogLease, folder: Path) -> None:
    add(lease, 1)
    lease.close()
    assert sorted(path.name for path in folder.iterdir()) == ["catalog.duckdb", "gate", "lock"]


def test_a_forgotten_lease_is_collected_and_lets_the_catalog_go(folder: Path) -> None:
    threads = set(threading.enumerate())
    forgotten = CatalogLease(folder, read_only=False, busy_timeout=20)
    with forgotten.connection(write=True) as connection:
        connection.execute("CREATE TABLE t (i BIGINT)")
    del forgotten, connection
    gc.collect()
    duckdb.connect(str(folder / "catalog.duckdb")).close()
    assert set(threading.enumerate()) <= threads


def test_a_missing_folder_is_named_in_the_error(folder: Path) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        CatalogLease(folder / "nowhere", read_only=False, busy_timeout=1)
