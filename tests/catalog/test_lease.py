"""What a lease promises inside one process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from tensordb.catalog.lease import CatalogLease
from tensordb.errors import ConflictError, DatabaseBusyError, ReadOnlyError


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


def test_what_was_written_is_read_back_and_survives_a_reopening(lease: CatalogLease, folder: Path) -> None:
    add(lease, 1)
    assert values(lease) == [1]
    lease.close()
    again = CatalogLease(folder, read_only=False, busy_timeout=20)
    assert values(again) == [1]
    again.close()


def test_the_connection_stays_open_while_nobody_else_wants_it(lease: CatalogLease) -> None:
    epoch = lease.epoch
    for value in range(20):
        add(lease, value)
        assert values(lease)[-1] == value
    assert lease.epoch == epoch


def test_two_leases_on_one_folder_in_one_process_take_turns_and_see_each_others_rows(
    lease: CatalogLease, folder: Path
) -> None:
    other = CatalogLease(folder, read_only=False, busy_timeout=20)
    for value in range(6):
        add(lease if value % 2 else other, value)
        assert values(other if value % 2 else lease) == list(range(value + 1))
    assert lease.epoch > 2
    other.close()


def test_the_epoch_tells_that_somebody_else_may_have_written(lease: CatalogLease, folder: Path) -> None:
    before = lease.epoch
    other = CatalogLease(folder, read_only=False, busy_timeout=20)
    add(other, 5)
    other.close()
    assert values(lease) == [5]
    assert lease.epoch > before


def test_readers_hold_the_file_at_the_same_time(lease: CatalogLease, folder: Path) -> None:
    add(lease, 1)
    readers = [CatalogLease(folder, read_only=True, busy_timeout=20) for _ in range(3)]
    with (
        readers[0].connection(write=False) as one,
        readers[1].connection(write=False) as two,
        readers[2].connection(write=False) as three,
    ):
        assert [c.execute("SELECT i FROM t").fetchall() for c in (one, two, three)] == [[(1,)]] * 3
    for reader in readers:
        reader.close()


def test_a_read_only_lease_refuses_to_write(lease: CatalogLease, folder: Path) -> None:
    reader = CatalogLease(folder, read_only=True, busy_timeout=20)
    with pytest.raises(ReadOnlyError, match="read_only"), reader.connection(write=True):
        pass
    reader.close()


def test_a_block_inside_a_block_uses_the_same_connection(lease: CatalogLease) -> None:
    with lease.connection(write=True) as outer:
        outer.begin()
        with lease.connection(write=False) as inner:
            assert inner is outer
        with lease.connection(write=True) as inner:
            inner.execute("INSERT INTO t VALUES (3)")
        outer.rollback()
    assert values(lease) == []


def test_a_write_inside_a_read_is_refused_and_the_read_goes_on(lease: CatalogLease, folder: Path) -> None:
    lease.close()
    fresh = CatalogLease(folder, read_only=False, busy_timeout=20)
    with fresh.connection(write=False) as connection:
        with pytest.raises(ConflictError, match="inside a read"), fresh.connection(write=True):
            pass
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
    add(fresh, 1)
    assert values(fresh) == [1]
    fresh.close()


def test_a_closed_lease_says_so_and_closing_again_does_nothing(lease: CatalogLease) -> None:
    lease.close()
    lease.close()
    with pytest.raises(ConflictError, match="closed"), lease.connection(write=False):
        pass


def test_a_lease_is_not_closed_under_its_own_operation(lease: CatalogLease) -> None:
    with lease.connection(write=True) as connection:
        with pytest.raises(ConflictError, match="inside"):
            lease.close()
        connection.execute("INSERT INTO t VALUES (1)")
    assert values(lease) == [1]


def test_an_error_in_a_block_reaches_the_caller_and_frees_the_lease(lease: CatalogLease, folder: Path) -> None:
    with pytest.raises(duckdb.CatalogException), lease.connection(write=True) as connection:
        connection.execute("SELECT * FROM nothing")
    other = CatalogLease(folder, read_only=False, busy_timeout=20)
    add(other, 1)
    other.close()


def test_a_database_in_memory_has_the_same_interface_and_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    opened: list[bool] = []
    lease = CatalogLease(None, read_only=False, busy_timeout=1, on_connect=lambda _, writable: opened.append(writable))
    other = CatalogLease(None, read_only=False, busy_timeout=1)
    with lease.connection(write=False) as connection:
        connection.execute("CREATE TABLE t (i BIGINT)")
    add(lease, 4)
    assert values(lease) == [4]
    assert (opened, lease.epoch) == ([True], 1)
    with pytest.raises(duckdb.CatalogException):
        values(other)
    lease.close()
    other.close()
    assert list(tmp_path.iterdir()) == []


def test_every_new_connection_is_prepared_before_it_is_used(folder: Path) -> None:
    opened: list[bool] = []

    def prepare(connection: duckdb.DuckDBPyConnection, writable: bool) -> None:
        opened.append(writable)
        if writable:
            connection.execute("CREATE TABLE IF NOT EXISTS t (i BIGINT)")
        connection.execute("CREATE TEMP VIEW seen AS SELECT * FROM t")

    lease = CatalogLease(folder, read_only=False, busy_timeout=20, on_connect=prepare)
    add(lease, 1)
    other = CatalogLease(folder, read_only=False, busy_timeout=20)
    assert values(other) == [1]
    with lease.connection(write=False) as connection:
        assert connection.execute("SELECT * FROM seen").fetchall() == [(1,)]
    assert opened == [True, False]
    lease.close()
    other.close()


def test_a_failed_preparation_frees_the_database(folder: Path) -> None:
    def fail(_connection: duckdb.DuckDBPyConnection, _writable: bool) -> None:
        raise KeyError("schema")

    broken = CatalogLease(folder, read_only=False, busy_timeout=1, on_connect=fail)
    with pytest.raises(KeyError, match="schema"), broken.connection(write=True):
        pass
    other = CatalogLease(folder, read_only=False, busy_timeout=1)
    with other.connection(write=True) as connection:
        connection.execute("CREATE TABLE t (i BIGINT)")
    broken.close()
    other.close()


def test_threads_share_a_lease_and_lose_nothing(lease: CatalogLease) -> None:
    def work(first: int) -> None:
        for value in range(first, first + 25):
            add(lease, value)
            assert value in values(lease)

    threads = [threading.Thread(target=work, args=(number * 25,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert values(lease) == list(range(100))


def test_a_thread_waits_no_longer_than_busy_timeout_for_another(folder: Path) -> None:
    lease = CatalogLease(folder, read_only=False, busy_timeout=0.2)
    with lease.connection(write=True):
        seen: list[BaseException] = []

        def knock() -> None:
            try:
                with lease.connection(write=False):
                    pass
            except DatabaseBusyError as error:
                seen.append(error)

        started = time.monotonic()
        thread = threading.Thread(target=knock)
        thread.start()
        thread.join(20)
        assert 0.2 <= time.monotonic() - started < 10
    assert "thread" in str(seen[0])
    lease.close()


def test_a_second_lease_waits_no_longer_than_busy_timeout(lease: CatalogLease, folder: Path) -> None:
    impatient = CatalogLease(folder, read_only=False, busy_timeout=0.2)
    with lease.connection(write=True), pytest.raises(DatabaseBusyError, match=f"process {os.getpid()}"):
        add(impatient, 1)
    add(impatient, 2)
    assert values(lease) == [2]
    impatient.close()


def test_queries_see_no_python_variables(lease: CatalogLease) -> None:
    secret = {"a": [1]}
    with lease.connection(write=False) as connection, pytest.raises(duckdb.CatalogException):
        connection.execute("SELECT * FROM secret")
    assert secret
