"""Pins: segments that are still to be read are not removed, by whatever process, as long as the owner of the pin lives.

A pin is a shared lock on the first byte of the file, of the kind that belongs to an open file (Linux): a writer's
`flock` does not conflict with it, so that a segment may be pinned while it is appended to. Elsewhere it is a shared
`flock`, which a segment that is being appended to refuses.

Invariant: pins are taken while the catalog is held, and files are removed while it is held for writing. So whoever
removes a file need only look, and a pin is never late.
"""

from __future__ import annotations

import fcntl
import os
import struct
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

from tensordb.payloads.files import store_error, try_lock

_OPEN_FILE_LOCKS = hasattr(fcntl, "F_OFD_SETLK")
_LOCK = struct.Struct("@hhqqi4x")  # type, whence, start, length, process


class Pin:
    """Keeps segments from being removed until it is closed, collected, or its process ends."""

    def __init__(self, release: Callable[[], object]) -> None:
        self._finalizer = weakref.finalize(self, release)

    def close(self) -> None:
        """Let the segments go; closing twice is fine."""
        self._finalizer()

    def __enter__(self) -> Pin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def pin_files(paths: Iterable[Path]) -> Pin:
    """Pin segment files; one that is missing is left out, since reading it says what is wrong.

    Raises:
        StoreError: A file cannot be opened, as when the process has too many open.
    """
    held: list[int] = []
    try:
        for path in paths:
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise store_error("pinning", path, error) from error
            held.append(descriptor)
            _lock(descriptor)
    except BaseException:
        _close(held)
        raise
    return Pin(lambda: _close(held))


def is_pinned(descriptor: int) -> bool:
    """Return whether a pin holds the file."""
    if not _OPEN_FILE_LOCKS:
        return not try_lock(descriptor)
    wanted = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
    kind: int = _LOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, wanted))[0]
    return kind != fcntl.F_UNLCK


def _lock(descriptor: int) -> None:
    if _OPEN_FILE_LOCKS:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _LOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 1, 0))
    else:
        try_lock(descriptor, shared=True)


def _close(descriptors: list[int]) -> None:
    # Not unlocked: the child of a fork that reads on holds the same open files.
    while descriptors:
        os.close(descriptors.pop())
