"""The two file locks that decide which process may open the catalog: `gate` and `lock`.

Whoever wants the catalog takes `gate` exclusively, then `lock` (shared to read, exclusive to write), then lets `gate`
go. The gate is the turnstile: while somebody stands in it nobody else passes, so a stream of readers cannot keep a
writer out, and a holder sees a taken gate as "somebody waits".

Both are ``flock`` locks: they end with the process, however it ends. They belong to an open file, which a forked child
shares, so a child closes its copies and never unlocks them. Two descriptors of one process exclude each other as two
processes do.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from tensordb import files
from tensordb.catalog.lock_holder import leave_note, read_note
from tensordb.errors import DatabaseBusyError, StorageFullError, StoreError

try:
    import fcntl
except ImportError:  # a platform without POSIX locks can read, and is refused for writing
    fcntl = None  # type: ignore[assignment]

GATE_PAUSE = 0.002
LOCK_PAUSE = 0.0005
_READ_ONLY_FOLDER = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class CatalogLocks:
    """The gate and the lock of one folder, as one lease sees them.

    With `read_only` nothing is written: existing lock files are opened for reading, and where they can be neither
    opened nor created (a folder of somebody else, a read-only disk), or flock does not work, locks are left out.
    """

    def __init__(self, folder: Path, *, read_only: bool) -> None:
        self._folder = folder
        self._read_only = read_only
        self._gate: int | None = None
        self._lock: int | None = None

    def acquire(self, *, exclusive: bool, deadline: float) -> None:
        """Take the catalog, shared or exclusively.

        Args:
            exclusive: To write, alone; otherwise together with other readers.
            deadline: On the clock of ``time.monotonic``.

        Raises:
            DatabaseBusyError: Somebody else had it until the deadline.
            StoreError: The lock files cannot be opened, or flock fails.
        """
        self._open()
        if self._gate is None or self._lock is None:
            return
        if not _take(self._gate, exclusive=True, deadline=deadline, pause=GATE_PAUSE):
            raise self.busy(exclusive=exclusive)
        try:
            if not _take(self._lock, exclusive=exclusive, deadline=deadline, pause=LOCK_PAUSE):
                raise self.busy(exclusive=exclusive)
        finally:
            _unlock(self._gate)
        if not self._read_only:
            leave_note(self._lock)

    def release(self) -> None:
        """Let the catalog go; nothing happens when it is not held."""
        if self._lock is not None:
            _unlock(self._lock)

    def wanted(self) -> bool:
        """Whether somebody stands in the gate, waiting for us; without locks nobody could tell, so perhaps."""
        if self._gate is None:
            return True
        if not _try(self._gate, exclusive=False):
            return True
        _unlock(self._gate)
        return False

    def close(self) -> None:
        """Close the lock files, keeping locks that a parent process shares; a later `acquire` opens them again."""
        for descriptor in (self._gate, self._lock):
            if descriptor is not None:
                os.close(descriptor)
        self._gate = self._lock = None

    def busy(self, *, exclusive: bool, reason: str = "") -> DatabaseBusyError:
        """Word the error for a wait that was too long, naming who holds the catalog."""
        holder = read_note(self._folder / "lock")
        known = f" Taken last by {holder}." if holder else " The holder left no note."
        return DatabaseBusyError(
            f"The database {str(self._folder)!r} stayed busy while waiting to {'write' if exclusive else 'read'}."
            f"{known}{' ' + reason if reason else ''} Let that process finish, or raise busy_timeout."
        )

    def prove_exclusion(self) -> None:
        """Check at opening for writing that flock keeps two openers apart in this folder.

        Raises:
            StoreError: It does not (some network file systems, platforms without flock), or the folder is not writable.
        """
        self._open()
        second = _open_lock_file(self._folder / "gate", read_only=False)
        works = self._gate is not None and second is not None and excludes(self._gate, second)
        if second is not None:
            os.close(second)
        if not works:
            self.close()
            raise StoreError(
                f"File locks (flock) do not work in {str(self._folder)!r}, so two processes could damage the "
                "database. Put it on a local disk, or open it with read_only=True."
            )

    def _open(self) -> None:
        if self._lock is None:
            self._gate = _open_lock_file(self._folder / "gate", read_only=self._read_only)
            self._lock = _open_lock_file(self._folder / "lock", read_only=self._read_only)
            if self._read_only and not (_usable(self._gate) and _usable(self._lock)):
                self.close()


def excludes(first: int, second: int) -> bool:
    """Whether an exclusive flock on descriptor `first` keeps `second` out; both are of one file."""
    try:
        if not _try(first, exclusive=True):
            return True
        try:
            return not _try(second, exclusive=True)
        finally:
            _unlock(first)
    except OSError:
        return False


def _open_lock_file(path: Path, *, read_only: bool) -> int | None:
    """Open a lock file, creating it where needed; None for a reader that may not."""
    if fcntl is None:
        return None
    try:
        if not read_only:
            return files.open_file(path, os.O_RDWR | os.O_CREAT)
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return files.open_file(path, os.O_RDONLY | os.O_CREAT)
    except OSError as error:
        if read_only and error.errno in (*_READ_ONLY_FOLDER, *_FULL):
            return None
        if error.errno in _FULL:
            raise StorageFullError(
                f"No space to create the lock file {str(path)!r}; free some and try again."
            ) from error
        raise StoreError(
            f"Cannot open the lock file {str(path)!r}: {error.strerror}. Check that the folder exists and can be "
            "written, or open the database with read_only=True."
        ) from error


def _usable(descriptor: int | None) -> bool:
    """Whether there is a lock file and flock works on it at all."""
    if descriptor is None:
        return False
    try:
        if _try(descriptor, exclusive=True):
            _unlock(descriptor)
    except OSError:
        return False
    return True


def _take(descriptor: int, *, exclusive: bool, deadline: float, pause: float) -> bool:
    # Asking again every few milliseconds keeps the wait bounded and open to Ctrl-C; a blocking flock is neither.
    while not _try(descriptor, exclusive=exclusive):
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(pause, left))
    return True


def _try(descriptor: int, *, exclusive: bool) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(descriptor: int) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_UN)
