"""Mapped segment files for reading.

Invariants: a file is checked to be the right segment when it is first mapped, and to be long enough before every
access, so that a file cut short gives an error and not SIGBUS; a map lives as long as a view of it does; maps and
their descriptors are bounded, whatever views the caller keeps.
"""

from __future__ import annotations

import mmap
import os
import resource
import threading
import weakref
from pathlib import Path

from tensordb.errors import IntegrityError
from tensordb.forks import mend_after_fork
from tensordb.payloads.base import EMPTY, Location
from tensordb.payloads.files import store_error
from tensordb.payloads.layout import HEADER_BYTES, check_header
from tensordb.payloads.writer import segment_path


class _Map:
    """One mapping, with the descriptor that `mmap` keeps for itself."""

    __slots__ = ("mapping", "nbytes", "recent", "view")

    def __init__(self, mapping: mmap.mmap) -> None:
        self.mapping = mapping
        self.nbytes = len(mapping)
        self.view = memoryview(mapping)
        self.recent = True


class SegmentMaps:
    """The maps of one store; safe to use from threads.

    Args:
        folder: Where the segment files are.
        database_id: What their headers must name.
        most: Maps kept open; 256, or less where the process may open few files. As many again may live on in views
            that callers keep; beyond that, payloads are copied out of the file, since each map holds a descriptor.

    Attributes:
        released: How many segments were let go: they were removed, or are to be opened anew.
    """

    def __init__(self, folder: Path, database_id: bytes, most: int | None = None) -> None:
        self._folder = folder
        self._database_id = database_id
        self._most = most or min(256, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._maps: dict[int, _Map] = {}
        self._alive: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
        self._lock = threading.Lock()
        self.released = 0
        mend_after_fork(self)

    def holds(self, segment: int) -> bool:
        """Tell whether a segment is mapped here, whatever views of older maps there are."""
        return segment in self._maps

    def read(self, location: Location) -> memoryview:
        """Return the bytes as a read-only view; raise IntegrityError when they are not there."""
        offset, length = location.offset, location.length
        if length == 0:
            return EMPTY
        end = offset + length
        found = self._maps.get(location.segment)
        if found is None or found.nbytes < end or offset < HEADER_BYTES or length < 0:
            return self._read_unmapped(location)
        if found.mapping.size() < end:
            raise self._too_short(location, found.mapping.size())
        found.recent = True
        return found.view[offset:end]

    def check(self, location: Location) -> None:
        """Raise IntegrityError when the file no longer reaches to the end of the location."""
        if location.length == 0:
            return
        found = self._maps.get(location.segment)
        if found is not None:
            size = found.mapping.size()
        else:
            try:
                size = segment_path(self._folder, location.segment).stat().st_size
            except FileNotFoundError:
                return  # without a name nobody can cut it short: the view's own map keeps the bytes
        if size < location.offset + location.length:
            raise self._too_short(location, size)

    def drop(self, segment: int) -> None:
        """Forget the map of one segment; views of it stay valid."""
        with self._lock:
            self._maps.pop(segment, None)
            self.released += 1

    def clear(self) -> None:
        """Forget every map; views stay valid and close theirs when they go."""
        with self._lock:
            self.released += len(self._maps)
            self._maps.clear()

    def after_fork(self) -> None:
        """Replace the lock, which another thread may have held when the process forked."""
        self._lock = threading.Lock()

    def _read_unmapped(self, location: Location) -> memoryview:
        if location.length < 0 or location.offset < HEADER_BYTES:
            raise IntegrityError(f"{location} cannot be a payload's place: the catalog is damaged, restore a backup")
        path = segment_path(self._folder, location.segment)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise IntegrityError(
                f"{path} is missing; {location.length} bytes at offset {location.offset} were asked for: "
                "restore the file from a backup"
            ) from None
        except OSError as error:
            raise store_error("opening", path, error) from error
        try:
            return self._map_or_copy(descriptor, path, location)
        except OSError as error:
            raise store_error("reading", path, error) from error
        finally:
            os.close(descriptor)

    def _map_or_copy(self, descriptor: int, path: Path, location: Location) -> memoryview:
        size = os.fstat(descriptor).st_size
        end = location.offset + location.length
        if size < end:
            raise self._too_short(location, size)
        check_header(os.pread(descriptor, HEADER_BYTES, 0), location.segment, self._database_id, str(path))
        with self._lock:
            if len(self._alive) >= 2 * self._most:
                return _copy(descriptor, location)
            mapping = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
            self._alive.add(mapping)
            found = _Map(mapping)
            self._make_room(location.segment)
            self._maps[location.segment] = found
        return found.view[location.offset : end]

    def _make_room(self, segment: int) -> None:
        """Drop the map of this segment, or else those of removed ones, and one that was not read since the last round.

        A map keeps the bytes of a removed file on the disk.
        """
        if self._maps.pop(segment, None) is not None:
            return
        for each in [each for each in self._maps if not segment_path(self._folder, each).exists()]:
            del self._maps[each]
            self.released += 1
        while len(self._maps) >= self._most:
            oldest = next(iter(self._maps))
            entry = self._maps.pop(oldest)
            if entry.recent:
                entry.recent = False
                self._maps[oldest] = entry

    def _too_short(self, location: Location, size: int) -> IntegrityError:
        return IntegrityError(
            f"{segment_path(self._folder, location.segment)} ends at {size} bytes, but {location.length} bytes at "
            f"offset {location.offset} were stored in it: the file was cut short, restore it from a backup"
        )


def _copy(descriptor: int, location: Location) -> memoryview:
    with open(descriptor, "rb", buffering=0, closefd=False) as file:
        file.seek(location.offset)
        content = bytearray(location.length)
        filled = 0
        while filled < location.length:
            count = file.readinto(memoryview(content)[filled:])
            if not count:
                raise IntegrityError(f"a segment was cut short while {location} was read: restore it from a backup")
            filled += count
    return memoryview(content).toreadonly()
