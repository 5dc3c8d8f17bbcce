"""Forking with the database open: parent and child both survive, and neither loses a row."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tensordb.catalog.lease import CatalogLease

from .alone import LEASE_ALONE

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

PREAMBLE = """
import multiprocessing, os, signal, sys, threading, time
from pathlib import Path
from tensordb.catalog.lease import CatalogLease
from tensordb.errors import ConflictError
folder = Path(sys.argv[1])

def add(lease, value):
    with lease.connection(write=True) as connection:
        connection.execute("INSERT INTO t VALUES (?)", [value])

def rows(lease):
    with lease.connection(write=False) as connection:
        return [value for (value,) in connection.execute("SELECT i FROM t ORDER BY i").fetchall()]

def wait(pid):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        threading.Event().wait(0.002)
    os.kill(pid, signal.SIGKILL)
    raise SystemExit("the child hangs")

lease = CatalogLease(folder, read_only=False, busy_timeout=20)
with lease.connection(write=True) as connection:
    connection.execute("CREATE TABLE t (i BIGINT)")
add(lease, 1)
"""


def run(code: str, folder: Path, *, killed: bool = False) -> str:
    """Run a program to its end; it must succeed (or kill itself) and say nothing on stderr."""
    command = [sys.executable, "-c", LEASE_ALONE + PREAMBLE + textwrap.dedent(code), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (-9 if killed else 0, "")
    return done.stdout


def stored(folder: Path) -> str:
    """Return the rows that a program finds that had nothing to do with what was done."""
    lease = CatalogLease(folder, read_only=False, busy_timeout=5)
    try:
        with lease.connection(write=False) as connection:
            return str([value for (value,) in connection.execute("SELECT i FROM t ORDER BY i").fetchall()])
    finally:
        lease.close()


@pytest.mark.parametrize("use", ["pass", "rows(lease)", "add(lease, 2)", "del connection, lease"])
def test_a_child_of_any_ending_leaves_the_parents_rows_alone(tmp_path: Path, use: str) -> None:
    code = f"""
    for ending in (lambda: sys.exit(0), lambda: os._exit(0), lambda: os.kill(os.getpid(), signal.SIGKILL)):
        pid = os.fork()
        if pid == 0:
            {use}
            ending()
        wait(pid)
        add(lease, 3)
    print(rows(lease))
    """
    expected = [1, 2, 2, 2, 3, 3, 3] if "add" in use else [1, 3, 3, 3]
    assert run(code, tmp_path) == f"{expected}\n"
    assert stored(tmp_path) == str(expected)


def test_what_the_parent_commits_after_the_childs_exit_survives_its_own_kill(tmp_path: Path) -> None:
    code = """
    with lease.connection(write=True) as connection:
        pid = os.fork()
        if pid == 0:
            sys.exit(0)
        wait(pid)
        connection.execute("INSERT INTO t VALUES (2)")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    run(code, tmp_path, killed=True)
    assert stored(tmp_path) == "[1, 2]"


def test_a_fork_inside_a_transaction_leaves_it_to_the_parent(tmp_path: Path) -> None:
    code = """
    with lease.connection(write=True) as connection:
        connection.begin()
        connection.execute("INSERT INTO t SELECT i FROM range(2, 1000) r(i)")
        pid = os.fork()
        if pid == 0:
            add(lease, 5000)
            sys.exit(0)
        connection.commit()
    assert wait(pid) == 0
    print(len(rows(lease)), rows(lease)[-1])
    """
    assert run(code, tmp_path) == "1000 5000\n"


def test_a_fork_while_another_thread_works_waits_for_it(tmp_path: Path) -> None:
    code = """
    inside, forked = threading.Event(), threading.Event()
    def work():
        with lease.connection(write=True) as connection:
            inside.set()
            forked.wait(0.3)
            connection.execute("INSERT INTO t VALUES (2)")
    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    pid = os.fork()
    if pid == 0:
        add(lease, 3)
        os._exit(0)
    forked.set()
    assert wait(pid) == 0
    thread.join()
    print(rows(lease))
    """
    assert run(code, tmp_path) == "[1, 2, 3]\n"


def test_a_fork_during_an_operation_without_end_neither_hangs_nor_harms(tmp_path: Path) -> None:
    code = """
    from tensordb.catalog import lease_fork
    lease_fork.PATIENCE = 0.2
    inside, forked = threading.Event(), threading.Event()
    def work():
        with lease.connection(write=True) as connection:
            inside.set()
            forked.wait()
            connection.execute("INSERT INTO t VALUES (2)")
    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    pid = os.fork()
    if pid == 0:
        try:
            rows(lease)
        except ConflictError as error:
            os._exit(7 if "forked" in str(error) else 8)
        os._exit(9)
    code = wait(pid)
    forked.set()
    thread.join()
    print(code, rows(lease))
    """
    assert run(code, tmp_path) == "7 [1, 2]\n"


def test_parent_and_child_work_side_by_side_with_the_same_object(tmp_path: Path) -> None:
    code = """
    pids = []
    for number in (1, 2):
        pid = os.fork()
        if pid == 0:
            for value in range(30):
                add(lease, number * 1000 + value)
            os._exit(0)
        pids.append(pid)
    for value in range(30):
        add(lease, 3000 + value)
    assert [wait(pid) for pid in pids] == [0, 0]
    found = rows(lease)
    print(len(found), len(set(found)))
    """
    assert run(code, tmp_path) == "91 91\n"


def test_a_child_does_not_hold_on_to_what_the_parent_gave_up(tmp_path: Path) -> None:
    code = """
    ready, done = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(ready[1], b".")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    lease.close()
    other = CatalogLease(folder, read_only=False, busy_timeout=5)
    add(other, 2)
    print(rows(other))
    os.write(done[1], b".")
    assert wait(pid) == 0
    """
    assert run(code, tmp_path) == "[1, 2]\n"


def test_the_parent_keeps_its_hold_when_the_child_ends(tmp_path: Path) -> None:
    code = """
    from tensordb.errors import DatabaseBusyError
    with lease.connection(write=True):
        pid = os.fork()
        if pid == 0:
            lease.close()
            os._exit(0)
        assert wait(pid) == 0
        other = CatalogLease(folder, read_only=False, busy_timeout=0.1)
        try:
            rows(other)
        except DatabaseBusyError:
            print("held")
    """
    assert run(code, tmp_path) == "held\n"


def test_multiprocessing_children_by_fork_use_the_lease(tmp_path: Path) -> None:
    code = """
    def child(value):
        add(lease, value)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=child, args=(value,)) for value in (2, 3)]
    for process in children: process.start()
    for process in children: process.join(30)
    assert [process.exitcode for process in children] == [0, 0]
    print(rows(lease))
    """
    assert run(code, tmp_path) == "[1, 2, 3]\n"


def test_a_child_of_a_child_opens_for_itself(tmp_path: Path) -> None:
    code = """
    pid = os.fork()
    if pid == 0:
        add(lease, 2)
        grandchild = os.fork()
        if grandchild == 0:
            add(lease, 3)
            sys.exit(0)
        code = wait(grandchild)
        add(lease, 4)
        sys.exit(code)
    assert wait(pid) == 0
    print(rows(lease))
    """
    assert run(code, tmp_path) == "[1, 2, 3, 4]\n"


def test_a_database_in_memory_is_copied_into_the_child(tmp_path: Path) -> None:
    code = """
    memory = CatalogLease(None, read_only=False, busy_timeout=1)
    with memory.connection(write=True) as connection:
        connection.execute("CREATE TABLE t (i BIGINT)")
    add(memory, 1)
    pid = os.fork()
    if pid == 0:
        add(memory, 2)
        sys.exit(0 if rows(memory) == [1, 2] else 1)
    assert wait(pid) == 0
    print(rows(memory))
    """
    assert run(code, tmp_path) == "[1]\n"
