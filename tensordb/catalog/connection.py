"""Opening a DuckDB connection with the settings that tensordb relies on, and disowning one after a fork.

Invariant: DuckDB runs no threads of its own here. That makes small statements a quarter faster, and it is what allows
a forked child to close the connection it inherited.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import tempfile
import zlib
from pathlib import Path
from typing import Any, Final

import duckdb

from tensordb import files
from tensordb.errors import NotFoundError, StorageFullError, StoreError

_SETTINGS: Final[dict[str, Any]] = {
    "threads": 1,
    "async_threads": 0,
    # Closing pays for the checkpoint of what is in the WAL: 64 MB take a quarter of a second, 256 MB almost two.
    "wal_autocheckpoint": "64MB",
    # `SELECT * FROM x` must never find a Python variable of some caller.
    "python_enable_replacements": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    # Keeps `id IN (SELECT unnest(?))` a lookup by key for some thousand ids.
    "dynamic_or_filter_threshold": 4096,
}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PROCESS_TOKEN = secrets.token_hex(8)


def open_file(path: Path, *, writable: bool) -> duckdb.DuckDBPyConnection:
    """Open the catalog file; the caller holds the file locks that allow it.

    Raises:
        NotFoundError: Reading, and the file does not exist.
        StoreError: The file system refuses.
        duckdb.Error: Whatever else DuckDB reports; see `is_locked_out`.
    """
    if not writable and not path.exists():
        raise NotFoundError(f"There is no database in {str(path.parent)!r}. Open the folder for writing to create it.")
    try:
        if writable and not path.exists():
            _create(path)
        return _prepared(duckdb.connect(str(path), read_only=not writable, config=_settings(str(path))))
    except duckdb.IOException as error:
        if any(reason in str(error) for reason in ("Permission denied", "Read-only file system")):
            raise StoreError(f"The catalog {str(path)!r} cannot be opened: {error}") from error
        raise
    except OSError as error:
        raise StoreError(
            f"The catalog {str(path)!r} cannot be made: {error}; free space, or choose another place"
        ) from error


def _create(path: Path) -> None:
    """Make an empty catalog at once or not at all: a kill must not leave a file that is no database."""
    unfinished = path.with_name(f"{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        files.unlink(unfinished)
    duckdb.connect(str(unfinished), config=_settings(str(unfinished))).close()
    files.rename(unfinished, path)
    files.sync_directory(path.parent)


def secure_log(path: Path) -> None:
    """Make the catalog's write-ahead log where there is none, and its name durable: DuckDB syncs only its bytes.

    Without, a power cut could take the file away with every commit in it.

    Raises:
        StoreError: The file system refuses; nothing was committed.
    """
    log = log_of(path)
    try:
        if not log.exists():
            os.close(files.open_file(log, os.O_WRONLY | os.O_CREAT))
        files.sync_directory(path.parent)
    except OSError as error:
        kind = StorageFullError if error.errno in _FULL else StoreError
        raise kind(f"The log {str(log)!r} cannot be made durable: {error}; nothing was committed, repeat it") from error


def log_of(path: Path) -> Path:
    """Return where DuckDB keeps the write-ahead log of a catalog."""
    return path.with_name(f"{path.name}.wal")


def open_memory() -> duckdb.DuckDBPyConnection:
    """Open a new database that lives in memory only."""
    return _prepared(duckdb.connect(":memory:", config=_settings(secrets.token_hex(8))))


def is_locked_out(error: duckdb.Error) -> bool:
    """Whether DuckDB could not open a file because another program, or another use in this process, has it open."""
    return (isinstance(error, duckdb.IOException) and "Could not set lock" in str(error)) or (
        isinstance(error, duckdb.ConnectionException) and "different configuration" in str(error)
    )


def disown(connection: duckdb.DuckDBPyConnection, *, writable: bool) -> None:
    """Close, in a forked child, a connection that was idle in the parent, leaving the parent's files as they are.

    A plain close would checkpoint the parent's write-ahead log into the file and unlink it.
    """
    try:
        _end_transaction(connection)
        if writable:
            connection.execute("PRAGMA disable_checkpoint_on_shutdown")
        connection.close()
    except duckdb.Error:
        leak(connection)


def leak(connection: duckdb.DuckDBPyConnection) -> None:
    """Keep a connection from ever being closed by this process, not even at its exit."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def _end_transaction(connection: duckdb.DuckDBPyConnection) -> None:
    with contextlib.suppress(duckdb.Error):  # there need not be one
        connection.rollback()


def _prepared(connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    # In a notebook without ipywidgets DuckDB refuses the setting, even where it is off already, as it is there.
    if connection.execute("SELECT current_setting('enable_progress_bar')").fetchall()[0][0]:
        connection.execute("SET enable_progress_bar = false")
    return connection


def _settings(database: str) -> dict[str, Any]:
    """Settings of one database in this process.

    The folder for what does not fit into memory is outside the database, so that a kill leaves nothing in it. Its name
    carries the process id: DuckDB hands out an instance that is already open only to equal settings, so a child can
    never be given the one it inherited.
    """
    try:
        scratch = Path(tempfile.gettempdir())
    except FileNotFoundError:
        return {**_SETTINGS, "temp_directory": ""}
    name = f"tensordb-{os.getpid()}-{_PROCESS_TOKEN}-{zlib.crc32(database.encode()):08x}"
    return {**_SETTINGS, "temp_directory": str(scratch / name)}
