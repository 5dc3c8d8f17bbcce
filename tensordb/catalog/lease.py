"""The lease: the one way to reach the catalog's DuckDB connection.

DuckDB lets one process open a file for writing, or many for reading. A lease opens the catalog when there is work,
keeps it while nobody else wants it, and gives it up to whoever waits, so that many processes share one folder.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from tensordb.catalog.lease_fork import guard
from tensordb.catalog.lease_session import LeaseSession, OnConnect
from tensordb.errors import DatabaseBusyError

_PATIENCE_AT_EXIT = 5.0


class CatalogLease:
    """Shared access to the catalog of one folder, for the threads of this process and beside other processes.

    Forgetting `close` is safe: the connection is closed when the lease is collected or the interpreter exits. A forked
    child may go on with the same object; it opens the catalog for itself.

    Args:
        folder: An existing folder, which holds ``catalog.duckdb`` and the lock files; None for a database in memory.
        read_only: Refuse writing, and write no file at all.
        busy_timeout: Seconds to wait for other threads and processes together, before `DatabaseBusyError`.
        on_connect: Called with each newly opened connection and whether it is writable, before anybody uses it.

    Raises:
        StoreError: For writing: the folder cannot be written, or file locks do not work in it.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        read_only: bool,
        busy_timeout: float,
        on_connect: OnConnect | None = None,
    ) -> None:
        resolved = None if folder is None else Path(folder).resolve()
        self._session = LeaseSession(resolved, read_only=read_only, busy_timeout=busy_timeout, on_connect=on_connect)
        guard(self._session)
        # Runs at exit too, after the threads of the user have ended and while DuckDB still works.
        self._farewell = weakref.finalize(self, _say_farewell, self._session)

    @property
    def epoch(self) -> int:
        """Grows whenever the connection was opened anew: what was cached from the catalog before may be stale."""
        return self._session.epoch

    @contextmanager
    def connection(self, *, write: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        """Hold the catalog's connection for the length of a ``with`` block; other threads wait.

        Blocks nest in one thread. Results and cursors end with the block: the connection may be closed right after it.

        Args:
            write: Whether the block may change the catalog. A block that only reads shares the file with other readers.

        Raises:
            DatabaseBusyError: Others held it for longer than `busy_timeout`; the message says who.
            ReadOnlyError: A write to a lease that was opened with `read_only`.
            ConflictError: The lease is closed, or a write was begun inside a read of the same thread.
            NotFoundError: A read, and the folder has no catalog yet.
            StoreError: The file system refuses.
        """
        session = self._session
        connection = session.enter(write=write)
        epoch = session.epoch
        try:
            yield connection
        finally:
            session.leave(epoch)

    def discard(self) -> None:
        """Have the next block open the catalog anew: after an error the state of the connection is not to be trusted.

        To be called inside a `connection` block.
        """
        self._session.discard()

    def secure_log(self) -> None:
        """Have a commit that follows, in this `connection` block for writing, survive a power cut.

        Raises:
            StoreError: The file system refuses; nothing was committed.
        """
        self._session.secure_log()

    def close(self) -> None:
        """Close the connection and let the catalog go; a second call does nothing.

        Raises:
            DatabaseBusyError: Another thread used it for longer than `busy_timeout`.
            ConflictError: Called inside a `connection` block of the same thread.
        """
        self._session.close()
        self._farewell.detach()


def _say_farewell(session: LeaseSession) -> None:
    # A thread that is still at work keeps its connection: what it committed is safe, and there is nobody to tell.
    with contextlib.suppress(DatabaseBusyError):
        session.close(patience=_PATIENCE_AT_EXIT, at_exit=True)
