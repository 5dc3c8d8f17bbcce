"""System calls on segment files, made whole: partial writes go on, errors get a remedy."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensordb import files
from tensordb.errors import StorageFullError, StoreError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BUSY = {errno.EAGAIN, errno.EACCES}
_BUFFERS_PER_CALL = max(os.sysconf("SC_IOV_MAX"), 16)  # -1 where the system does not say
_BYTES_PER_CALL = 1 << 30  # macOS refuses 2 GiB in one call, Linux writes less than asked


def store_error(action: str, path: str | Path, error: OSError) -> StoreError:
    """Return the error to raise for a failed system call: `StorageFullError` when space is what was missing."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return StorageFullError(
            f"{action} {path} failed: {reason}. Nothing stored before is affected; free space on that disk, "
            "or raise the quota or file size limit, and try again"
        )
    return StoreError(
        f"{action} {path} failed: {reason}. Nothing stored before is affected; check that the folder exists, "
        "that its permissions allow this, and that the disk and the limit on open files are in order"
    )


def write_all(descriptor: int, views: list[memoryview]) -> None:
    """Write every byte of the flat byte views at the file's position, in as few calls as the system allows."""
    nbytes = sum(map(len, views))
    if len(views) <= _BUFFERS_PER_CALL and nbytes <= _BYTES_PER_CALL:
        written = files.write(descriptor, views)
        if written == nbytes:
            return
        views = _after(views, written)
    for batch in _batches(views):
        pending = batch
        while pending:
            pending = _after(pending, files.write(descriptor, pending))


def _batches(views: list[memoryview]) -> Iterator[list[memoryview]]:
    batch: list[memoryview] = []
    room = _BYTES_PER_CALL
    for view in views:
        for start in range(0, len(view), _BYTES_PER_CALL):
            piece = view[start : start + _BYTES_PER_CALL] if len(view) > _BYTES_PER_CALL else view
            if len(batch) == _BUFFERS_PER_CALL or len(piece) > room:
                yield batch
                batch, room = [], _BYTES_PER_CALL
            batch.append(piece)
            room -= len(piece)
    if batch:
        yield batch


def _after(views: list[memoryview], written: int) -> list[memoryview]:
    """Return what is left of the views once their first `written` bytes are on their way."""
    for index, view in enumerate(views):
        if written < len(view):
            return [view[written:], *views[index + 1 :]]
        written -= len(view)
    return []


def start_writeback(descriptor: int, offset: int, nbytes: int) -> None:
    """Let the disk begin with bytes that were written, so that a sync finds less to wait for (Linux; else nothing)."""
    if _sync_file_range is not None:
        _sync_file_range(descriptor, offset, nbytes, _SYNC_FILE_RANGE_WRITE)


def _system_sync_file_range() -> Any:
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function


_SYNC_FILE_RANGE_WRITE = 2
_sync_file_range = _system_sync_file_range()


def make_folders(folder: Path) -> None:
    """Make a folder and those above it that are missing; when it returns a power cut takes none of them away."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):
            files.make_folder(each)
        files.sync_directory(each.parent)


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Take the file's flock if nobody else holds it; return whether it was taken."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        raise
    return True
