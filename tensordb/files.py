"""The system calls by which tensordb changes files, one function each, and the catalog's COMMIT among them.

Invariant: nothing else in this package writes, syncs, names or removes a file of a database. Tests replace these
functions, to fail one or to see their order; callers therefore name them through the module.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def open_file(path: str | Path, flags: int) -> int:
    """Open a file to change it, or make it; return the descriptor."""
    return os.open(path, flags | os.O_CLOEXEC, 0o666)


def write(descriptor: int, views: Sequence[memoryview]) -> int:
    """Write at the file's position; return how many bytes were written, perhaps fewer than given."""
    return os.writev(descriptor, views)


def write_at(descriptor: int, view: memoryview | bytes, offset: int) -> int:
    """Write at an offset; return how many bytes were written, perhaps fewer than given."""
    return os.pwrite(descriptor, view, offset)


def truncate(descriptor: int, nbytes: int) -> None:
    """Cut the file, or let it grow with zeros."""
    os.ftruncate(descriptor, nbytes)


def sync_file(descriptor: int) -> None:
    """Return once the file's bytes and size are on the disk."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # fsync alone stops at the drive's cache there
    else:
        os.fdatasync(descriptor)


def sync_directory(path: str | Path) -> None:
    """Return once the directory's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_mode(descriptor: int, mode: int) -> None:
    """Change the file's permissions."""
    os.fchmod(descriptor, mode)


def make_folder(path: str | Path) -> None:
    """Make one folder, whose parent exists."""
    os.mkdir(path)


def rename(source: str | Path, target: str | Path) -> None:
    """Give a file or folder another name, in place of a file that has it."""
    os.replace(source, target)


def link(source: str | Path, target: str | Path) -> None:
    """Give a file a second name, which no other file has."""
    os.link(source, target)


def unlink(path: str | Path) -> None:
    """Take a file's name away; FileNotFoundError when there is none."""
    os.unlink(path)


def remove_tree(path: str | Path) -> None:
    """Take away what can be taken of a folder and of everything in it."""
    shutil.rmtree(path, ignore_errors=True)


def commit(statement: Callable[[], object]) -> None:
    """Commit the catalog's transaction by calling what does."""
    statement()
