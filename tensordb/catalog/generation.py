"""What tells a process, without a lock or a system call, that others may have changed records meanwhile.

The lock file `gate` holds two random words that everybody maps. Invariants: a writer renews them inside its exclusive
lease, before it changes anything, so that while a word is as it was read inside an earlier lease nothing was committed
in between that the word stands for. Words are random and not counted: half a word read during its change, or a file
made anew, equals no earlier one. A process that cannot read them has None, which equals nothing: it asks the catalog.

Catalogs of earlier releases, which renew nothing, are of another format and cannot be opened by those any more.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from tensordb import files
from tensordb.errors import StoreError

_NBYTES = 16
_RECORDS, _CONTENTS = 0, 1
_ONE_MACHINE = frozenset(
    ("apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs", "tmpfs", "xfs", "zfs")
)
"""File systems whose files are mapped into the same memory for all processes that see them."""
_MOUNTS = Path("/proc/self/mountinfo")


class Generation:
    """The two words of one folder, or of one database in memory for None.

    One word is renewed by every write, the other one by those that change or remove a record or a dataset.
    """

    def __init__(self, folder: Path | None, *, read_only: bool) -> None:
        self._path = None if folder is None else folder / "gate"
        self._read_only = read_only
        self._kind = None if folder is None else _file_system(folder)
        self._map: mmap.mmap | None = None
        self._words = memoryview(bytearray(os.urandom(_NBYTES))).cast("Q") if folder is None else None
        self.open()

    def records(self) -> int | None:
        """Return the word of changed records; None where it cannot be known."""
        words = self._words
        return None if words is None else words[_RECORDS]

    def contents(self) -> int | None:
        """Return the word of all writes; None where it cannot be known."""
        words = self._words
        return None if words is None else words[_CONTENTS]

    def open(self) -> None:
        """Map the file unless that was done, or cannot be; to be called inside a lease."""
        trusted = self._kind in _ONE_MACHINE and not (self._kind == "overlay" and self._read_only)
        if self._path is not None and self._words is None and trusted:
            try:
                self._map = _mapped(self._path, writable=not self._read_only)
            except OSError:  # no such file, no space for it: nothing is known of others then
                return
            self._words = None if self._map is None else memoryview(self._map).cast("Q")

    def renew(self, *, keeps_records: bool) -> None:
        """Say that something will be written; inside an exclusive lease, before anything is.

        Args:
            keeps_records: Only what is new is written: every record that there is stays as it is.

        Raises:
            StoreError: Others rely on the file, and this process cannot write to it.
        """
        self.open()
        if self._words is not None:
            for word in (_CONTENTS,) if keeps_records else (_CONTENTS, _RECORDS):
                self._words[word] = int.from_bytes(os.urandom(8), "little")
        elif self._path is not None and _long_enough(self._path):
            # Wherever it cannot be mapped: by a write, which those see who can.
            _overwrite(self._path)

    def close(self) -> None:
        """Let the file go; nothing is known then."""
        words, mapped = self._words, self._map
        self._words = self._map = self._path = None
        if words is not None and mapped is not None:
            words.release()
            mapped.close()


def _mapped(path: Path, *, writable: bool) -> mmap.mmap | None:
    descriptor = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size < _NBYTES:
            if not writable:
                return None
            # By a write, which reserves the space: a map over a hole may end the process where the disk is full.
            if files.write_at(descriptor, os.urandom(_NBYTES), 0) < _NBYTES:
                return None
        return mmap.mmap(descriptor, _NBYTES, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)
    finally:
        os.close(descriptor)


def _long_enough(path: Path) -> bool:
    try:
        return path.stat().st_size >= _NBYTES
    except OSError:
        return False


def _overwrite(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            files.write_at(descriptor, os.urandom(_NBYTES), 0)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StoreError(f"the lock file {str(path)!r} cannot be written: {error}; see that the disk works") from error


def _file_system(folder: Path) -> str | None:
    """Return the kind of file system that a folder is on; None where the system does not say (Linux does)."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    best, kind = -1, None
    for line in lines:
        before, _, after = line.partition(" - ")
        place = before.split(" ")[4].encode().decode("unicode_escape") if before.count(" ") >= 4 else ""
        if len(place) >= best and place and folder.resolve().is_relative_to(place):
            best, kind = len(place), after.split(" ")[0]  # of equal places the last one lies on top
    return kind
