"""The state behind a lease: one connection that is open while its file lock is held, and never otherwise.

Invariants:
- `_turn` is held by the one thread that uses or changes the connection, the watching thread included.
- The connection is closed before its file lock is let go, and opened after it is taken.
- `epoch` grows with every opening and with every fork: another process may have written in between.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import duckdb

from tensordb.catalog.connection import disown, is_locked_out, leak, log_of, open_file, open_memory, secure_log
from tensordb.catalog.lease_watcher import Watcher
from tensordb.catalog.lock_thread import FairLock
from tensordb.catalog.locks import CatalogLocks
from tensordb.errors import ConflictError, DatabaseBusyError, ReadOnlyError

OnConnect = Callable[[duckdb.DuckDBPyConnection, bool], None]

QUANTUM = 0.05
"""Seconds that a connection is kept at work while others wait: opening costs 15 ms, so less would be a waste."""
PAUSE_IS_IDLE = 0.002
"""Seconds without work after which a connection is given to those who wait, before its quantum is over."""
LOOK_OFTEN, LOOK_SELDOM = 0.004, 0.02
"""Seconds between looks at the gate: soon after the last use, and when a second has gone by."""
IDLE_CHECKPOINT = 0.25
IDLE_CLOSE = 5.0
SMALL_WAL = 1 << 20
PATIENCE_WITH_DAEMONS = 1.0
"""Seconds at exit for daemon threads that used the lease to end."""
_RETRY_PAUSE = 0.005


class LeaseSession:
    """One lease's connection with its locks. `CatalogLease` says what its methods promise."""

    def __init__(
        self, folder: Path | None, *, read_only: bool, busy_timeout: float, on_connect: OnConnect | None
    ) -> None:
        self.epoch = 0
        self._file = None if folder is None else folder / "catalog.duckdb"
        self._log = "" if self._file is None else str(log_of(self._file))
        self._locks = None if folder is None else CatalogLocks(folder, read_only=read_only)
        self._read_only = read_only
        self._busy_timeout = busy_timeout
        self._on_connect = on_connect
        self._turn = FairLock()
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._writable = False
        self._depth = 0
        self._doubtful = self._log_secured = False
        self._opened_at = self._used_at = 0.0
        self._unusable = ""
        self._exiting = False
        self._daemons: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._watcher = Watcher(self.tend)
        if self._locks is not None and not read_only:
            self._locks.prove_exclusion()

    def enter(self, *, write: bool) -> duckdb.DuckDBPyConnection:
        """Take the connection for the calling thread, opening it when needed; `leave` follows."""
        if write and self._read_only:
            raise ReadOnlyError("The database was opened with read_only=True. Open it for writing to change it.")
        deadline = time.monotonic() + self._busy_timeout
        thread = threading.current_thread()
        if thread.daemon:
            self._daemons.add(thread)
        held = self._turn.held
        try:
            if not self._turn.acquire(self._busy_timeout):
                raise DatabaseBusyError(
                    f"Another thread of this process used the database for longer than busy_timeout "
                    f"({self._busy_timeout:g} s). Let it finish, or raise busy_timeout."
                )
            connection = self._connection
            if connection is None or self._unusable or (write and not self._writable):
                connection = self._reopen(write, deadline)
            self._depth += 1
        except BaseException:  # Ctrl-C may come when the turn is taken and not told yet
            self._turn.release_to(held)
            raise
        return connection

    def leave(self, epoch: int) -> None:
        """Give the connection back; `epoch` is that of `enter`, and a child forked in between has nothing to give."""
        if epoch != self.epoch:
            return
        try:
            self._depth -= 1
            self._used_at = time.monotonic()
            spent = self._used_at - self._opened_at >= QUANTUM
            if self._depth == 0 and (self._doubtful or (spent and self._wanted())):
                self._drop()
        finally:
            self._turn.release()

    def discard(self) -> None:
        """Close the connection as soon as the block of this thread ends; one in memory has nothing to go back to."""
        self._doubtful = self._file is not None

    def secure_log(self) -> None:
        """Make durable that the write-ahead log is there, before the first commit that goes into it."""
        # One that another process made may lack its durable name, had that process been killed before its commit.
        if self._file is not None and not (self._log_secured and os.path.exists(self._log)):
            secure_log(self._file)
            self._log_secured = True

    def tend(self) -> float | None:
        """Do what an idle holder owes the others; returns the seconds to the next look, None when nothing is held."""
        if not self._turn.acquire(0):
            return LOOK_OFTEN
        try:
            if self._connection is None or self._locks is None:
                return None
            now = time.monotonic()
            idle = now - self._used_at
            may_give = idle >= PAUSE_IS_IDLE or now - self._opened_at >= QUANTUM
            if idle >= IDLE_CLOSE or (may_give and self._wanted()):
                self._drop()
                return None
            if idle >= IDLE_CHECKPOINT:
                self._checkpoint()
            return LOOK_OFTEN if idle < 1.0 else LOOK_SELDOM
        finally:
            self._turn.release()

    def close(self, *, patience: float | None = None, at_exit: bool = False) -> None:
        """Close the connection and stop watching; `at_exit` even below an open `enter` of this thread."""
        if not self._turn.acquire(self._busy_timeout if patience is None else patience):
            raise DatabaseBusyError(
                "Another thread still uses the database, so it was not closed. Let it finish first."
            )
        try:
            if self._depth and not at_exit:
                raise ConflictError("The database cannot be closed inside one of its own operations. Leave it first.")
            self._unusable = self._unusable or "The database is closed. Open it again to use it."
            self._exiting = at_exit
            self._drop()
            if self._locks is not None:
                self._locks.close()
            while self._depth:  # at exit below open blocks: whoever waits for their end must wake up, to end as well
                self._depth -= 1
                self.epoch += 1  # what is left to `leave` has nothing to give back any more
                self._turn.release()
        finally:
            self._turn.release()
        self._watcher.stop()
        if at_exit:
            self._await_daemons()

    def _await_daemons(self) -> None:
        """Let daemon threads meet the closed lease and end: frozen in the middle, they would keep DuckDB's objects."""
        deadline = time.monotonic() + PATIENCE_WITH_DAEMONS
        for thread in list(self._daemons):
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def quiesce(self, patience: float) -> bool:
        """Wait until no other thread uses the connection and keep them out; False when it took too long."""
        if not self._turn.acquire(patience):
            return False
        self._watcher.stop()
        return True

    def resume(self) -> None:
        """Let the threads go on after `quiesce`."""
        self._watcher = Watcher(self.tend)
        if self._connection is not None and self._file is not None:
            self._watcher.wake()
        self._turn.release()

    def restart_in_child(self, *, quiet: bool) -> None:
        """Become a fresh lease in a forked child, touching nothing that belongs to the parent.

        Args:
            quiet: Whether `quiesce` succeeded, so that no thread was inside DuckDB at the fork.
        """
        self._turn, self._watcher = FairLock(), Watcher(self.tend)
        self._depth = 0
        self.epoch += 1
        if self._locks is not None:
            self._locks.close()
        if self._connection is None or (quiet and self._file is None):
            return
        if quiet:
            disown(self._connection, writable=self._writable)
        else:
            leak(self._connection)
            self._unusable = (
                "This process was forked while another thread was using the database, which only the parent can go "
                "on with. Open the database after the fork, or start processes with the spawn method."
            )
        self._connection = None

    def _reopen(self, write: bool, deadline: float) -> duckdb.DuckDBPyConnection:
        if self._exiting and threading.current_thread().daemon:
            # The interpreter ends under this thread, which is no fault to report: let it end without a word.
            raise SystemExit
        if self._unusable:
            raise ConflictError(self._unusable)
        if self._depth:
            raise ConflictError(
                "A write began inside a read of the same thread, which holds the database for reading only. "
                "Finish the read first, or begin with the write."
            )
        self._drop()
        if self._locks is not None:
            self._locks.acquire(exclusive=write, deadline=deadline)
        try:
            connection = self._connect(write, deadline)
        except BaseException:
            if self._locks is not None:
                self._locks.release()
            raise
        self._connection, self._writable = connection, write or self._file is None
        self._log_secured = False
        self._opened_at = self._used_at = time.monotonic()
        self.epoch += 1
        if self._file is not None:
            self._watcher.wake()
        return connection

    def _connect(self, write: bool, deadline: float) -> duckdb.DuckDBPyConnection:
        connection = open_memory() if self._file is None else self._open_file(self._file, write, deadline)
        try:
            if self._on_connect is not None:
                self._on_connect(connection, write or self._file is None)
        except BaseException:
            connection.close()
            raise
        return connection

    def _open_file(self, file: Path, write: bool, deadline: float) -> duckdb.DuckDBPyConnection:
        while True:
            try:
                return open_file(file, writable=write)
            except duckdb.Error as error:
                # A program that knows nothing of our locks, or a reader in a folder where it could not take them.
                if not is_locked_out(error) or self._locks is None:
                    raise
                if time.monotonic() >= deadline:
                    raise self._locks.busy(exclusive=write, reason=f"DuckDB reports: {error}") from error
            time.sleep(_RETRY_PAUSE)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._doubtful = False
        try:
            if connection is not None:
                connection.close()
        finally:
            if self._locks is not None:
                self._locks.release()

    def _wanted(self) -> bool:
        return self._locks is not None and self._locks.wanted()

    def _checkpoint(self) -> None:
        """Move a grown write-ahead log into the file while nobody waits for it, so that no commit has to."""
        if self._connection is None or not self._writable or self._file is None:
            return
        with contextlib.suppress(OSError, duckdb.Error):  # nothing is lost: the log stays, and closing tries again
            if os.path.getsize(self._log) >= SMALL_WAL:
                self._connection.execute("CHECKPOINT")
