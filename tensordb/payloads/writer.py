"""One segment file that is open for appending.

Invariants: the flock is held from before the first payload until `close`, so that no other writer appends and
nobody removes the file; the file's position is the end of the last whole payload between appends; bytes once
written are never written again.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import secrets
import stat
from pathlib import Path

from tensordb import files
from tensordb.errors import FormatError, IntegrityError
from tensordb.payloads.base import ALIGNMENT, Location
from tensordb.payloads.files import (
    start_writeback,
    store_error,
    try_lock,
    write_all,
)
from tensordb.payloads.layout import FOOTER_BYTES, HEADER_BYTES, check_header, pack_footer, pack_header
from tensordb.payloads.pins import is_pinned

SUFFIX = ".seg"
_PADDING = memoryview(bytes(ALIGNMENT))
_MOST_TRIED = 16  # other processes' live segments looked at before a new one is begun


def segment_path(folder: Path, segment: int) -> Path:
    """Return the file of a segment."""
    return folder / f"{segment:016x}{SUFFIX}"


def segment_of(name: str) -> int | None:
    """Return the segment that a file name stands for, None when it is not a segment's."""
    digits = name.removesuffix(SUFFIX)
    if len(digits) != 16 or not name.endswith(SUFFIX) or not set(digits) <= set("0123456789abcdef"):
        return None
    return int(digits, 16)


class SegmentWriter:
    """A segment held for appending; made by `create` or `adopt`. Its owner serialises the calls.

    Attributes:
        segment: The id.
        end: Offset behind the last whole payload.
        dirty: Whether something was appended since the last successful sync.
        sealed: Whether nobody may append to the file any more.
    """

    __slots__ = ("_database_id", "_descriptor", "_new", "_path", "dirty", "end", "sealed", "segment")

    def __init__(self, path: Path, descriptor: int, segment: int, database_id: bytes, end: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._database_id = database_id
        self._new = True  # nobody knows yet whether the directory entry is on the disk
        self.segment = segment
        self.end = end
        self.dirty = False
        self.sealed = False

    @classmethod
    def create(cls, folder: Path, database_id: bytes) -> SegmentWriter:
        """Begin a new segment file; raise OSError and leave nothing when that fails."""
        segment = secrets.randbits(63) or 1
        path = segment_path(folder, segment)
        descriptor = files.open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            # Waits for no longer than a look at the locks by `segments` or `remove` elsewhere takes.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            write_all(descriptor, [memoryview(pack_header(segment, database_id))])
            removed = not os.fstat(descriptor).st_nlink
        except BaseException:
            with contextlib.suppress(OSError):  # then `gc` removes it
                files.unlink(path)
            os.close(descriptor)
            raise
        if removed:  # another process took the file, not locked yet, for a dead writer's
            os.close(descriptor)
            return cls.create(folder, database_id)
        return cls(path, descriptor, segment, database_id, HEADER_BYTES)

    @classmethod
    def adopt(cls, folder: Path, database_id: bytes, room: int, limit: int) -> SegmentWriter | None:
        """Take over a segment closed in good order with `room` bytes left below `limit`, if there is one."""
        with os.scandir(folder) as entries:
            candidates = (entry for entry in entries if _has_room(entry, limit - room))
            for entry in itertools.islice(candidates, _MOST_TRIED):
                with contextlib.suppress(OSError, IntegrityError, FormatError):  # then it is not one to append to
                    if (writer := cls._take_over(folder / entry.name, database_id)) is not None:
                        return writer
        return None

    @classmethod
    def _take_over(cls, path: Path, database_id: bytes) -> SegmentWriter | None:
        segment = int(path.stem, 16)
        descriptor = files.open_file(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            if try_lock(descriptor) and (end := _closed_end(descriptor, path, segment, database_id)):
                # The footer is overwritten, so that a file cut short later can never end in one.
                os.lseek(descriptor, end, os.SEEK_SET)
                return cls(path, descriptor, segment, database_id, end)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    @property
    def has_payloads(self) -> bool:
        """Whether anything was ever appended to the file."""
        return self.end > HEADER_BYTES

    def append(self, views: list[memoryview], nbytes: int) -> Location:
        """Write the views as one payload of `nbytes` bytes; after an OSError call `rewind`."""
        padding = -self.end % ALIGNMENT
        offset = self.end + padding
        write_all(self._descriptor, [_PADDING[:padding], *views] if padding else views)
        self.end = offset + nbytes
        self.dirty = True
        return Location(self.segment, offset, nbytes)

    def begin(self, lead: int) -> GrowingPayload:
        """Begin a payload whose first `lead` bytes follow later; after an OSError, or to give it up, call `rewind`."""
        padding = -self.end % ALIGNMENT
        if padding:  # the end of a footer may lie there
            write_all(self._descriptor, [_PADDING[:padding]])
        offset = self.end + padding
        os.lseek(self._descriptor, offset + lead, os.SEEK_SET)
        return GrowingPayload(self, self._descriptor, offset, lead)

    def rewind(self) -> bool:
        """Cut off what a failed append left behind; return False, to abandon the file, when that fails too."""
        try:
            files.truncate(self._descriptor, self.end)
            os.lseek(self._descriptor, self.end, os.SEEK_SET)
        except OSError:
            return False
        return True

    def sync(self) -> None:
        """Return once everything appended is durable, the file's name included; raise OSError when it may not be."""
        files.sync_file(self._descriptor)
        if self._new:
            files.sync_directory(self._path.parent)
            files.sync_directory(self._path.parent.parent)
            self._new = False

    def seal(self) -> None:
        """Let nobody append to the file any more, in this process or another one."""
        self.sealed = True
        with contextlib.suppress(OSError):  # without permissions the missing footer keeps others away
            files.set_mode(self._descriptor, os.fstat(self._descriptor).st_mode & ~0o222 & 0o7777)

    def close(self) -> None:
        """Give the segment up: to the next writer with a footer, to nobody when sealed; an empty one is removed."""
        with contextlib.suppress(OSError):  # the footer is a convenience: without it nobody appends here
            if not self.has_payloads:
                files.unlink(self._path)
            elif not self.sealed:
                self._write_footer()
        with contextlib.suppress(OSError):
            # A child of a fork that ran no Python may hold a copy of the descriptor, and the lock with it.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)

    def forget(self) -> None:
        """Drop the descriptor in the child of a fork; the file and its lock stay the parent's."""
        os.close(self._descriptor)

    def _write_footer(self) -> None:
        padding = -self.end % ALIGNMENT
        footer = pack_footer(self.segment, self._database_id, self.end + padding)
        try:
            write_all(self._descriptor, [memoryview(bytes(padding) + footer)])
        except OSError:
            self.rewind()


class GrowingPayload:
    """A payload at the end of a segment that is written piece by piece, its first bytes last."""

    __slots__ = ("_descriptor", "_lead", "_nbytes", "_offset", "_writer")

    def __init__(self, writer: SegmentWriter, descriptor: int, offset: int, lead: int) -> None:
        self._writer = writer
        self._descriptor = descriptor
        self._offset = offset
        self._lead = lead
        self._nbytes = lead

    def write(self, views: list[memoryview]) -> None:
        """Append the views, and let the disk begin with them."""
        nbytes = sum(map(len, views))
        write_all(self._descriptor, views)
        start_writeback(self._descriptor, self._offset + self._nbytes, nbytes)
        self._nbytes += nbytes

    def finish(self, first: memoryview) -> Location:
        """Write the first bytes and return where the payload is."""
        if len(first) != self._lead:
            raise ValueError(f"{len(first)} first bytes were given where room for {self._lead} was left")
        at = 0
        while at < len(first):
            at += files.write_at(self._descriptor, first[at:], self._offset + at)
        self._writer.end = self._offset + self._nbytes
        self._writer.dirty = True
        return Location(self._writer.segment, self._offset, self._nbytes)


def _has_room(entry: os.DirEntry[str], most: int) -> bool:
    """Return whether the entry looks like a segment that ends before `most` and was not sealed."""
    if segment_of(entry.name) is None:
        return False
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return bool(status.st_mode & stat.S_IWUSR) and HEADER_BYTES + FOOTER_BYTES <= status.st_size <= most


def _closed_end(descriptor: int, path: Path, segment: int, database_id: bytes) -> int:
    """Return where the payloads end in a locked file that was closed in good order and is still there, else 0."""
    status = os.fstat(descriptor)
    end = status.st_size - FOOTER_BYTES
    check_header(os.pread(descriptor, HEADER_BYTES, 0), segment, database_id, str(path))
    if not status.st_nlink or os.pread(descriptor, FOOTER_BYTES, end) != pack_footer(segment, database_id, end):
        return 0
    return end


def is_live(path: Path) -> bool:
    """Return whether a writer or a pin holds the segment file; raise FileNotFoundError when there is none."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return not try_lock(descriptor, shared=True) or is_pinned(descriptor)
    finally:
        os.close(descriptor)


def remove_dead(path: Path) -> bool:
    """Unlink the segment file if neither a writer nor a pin holds it; return whether that was done."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise store_error("opening", path, error) from error
    try:
        if not try_lock(descriptor) or is_pinned(descriptor) or not os.fstat(descriptor).st_nlink:
            return False
        files.unlink(path)
    except OSError as error:
        raise store_error("removing", path, error) from error
    finally:
        os.close(descriptor)
    return True
