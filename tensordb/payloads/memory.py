"""The payloads of a database without a folder: the same contract as segment files, in memory.

Invariants: a payload's bytes are a copy of what was appended and never change; removing a segment frees them once
the last view is gone.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import secrets
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from tensordb.errors import ConflictError, IntegrityError
from tensordb.payloads.base import ALIGNMENT, EMPTY, Location, Produce, SegmentInfo, as_views
from tensordb.payloads.pins import Pin

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from tensordb.payloads.surroundings import Offsets


class _Segment:
    __slots__ = ("end", "offsets", "payloads")

    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.payloads: list[bytes] = []
        self.end = 0


class MemorySegments:
    """Payloads in memory; safe to use from threads, gone with the store.

    >>> store = MemorySegments()
    >>> bytes(store.read(store.append([b"encoded ", b"bytes"])))
    b'encoded bytes'
    """

    def __init__(self) -> None:
        self._segments: dict[int, _Segment] = {}
        self._active: int | None = None
        self._held: set[int] = set()
        self._pinned: dict[object, frozenset[int]] = {}
        self._writing = 0
        self._closed = False
        self.released = 0
        self._lock = threading.Lock()
        _stores.add(self)

    def append(self, buffers: Sequence[Buffer]) -> Location:
        """Copy the buffers one after another as one payload; raise ConflictError when the store is closed."""
        payload = b"".join(as_views(buffers))
        with self._lock:
            self._check_open()
            if self._active is None:
                self._active = secrets.randbits(63) or 1
                self._segments[self._active] = _Segment()
            segment = self._segments[self._active]
            offset = segment.end + -segment.end % ALIGNMENT
            if payload:
                segment.payloads.append(payload)
                segment.offsets.append(offset)
            segment.end = offset + len(payload)
            return Location(self._active, offset, len(payload))

    def append_growing(self, lead: int, most: int, produce: Produce) -> Location | None:
        """Collect what `produce` writes, and append it behind the first bytes that it returns."""
        parts: list[bytes] = []
        first = produce(lambda buffers: parts.append(b"".join(as_views(buffers))))
        return None if first is None else self.append([first, *parts])

    def flush(self) -> None:
        """Do nothing: memory is as durable as it gets."""

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keep what is written inside the block from being removed before it ends."""
        with self._lock:
            self._check_open()
            self._writing += 1
        try:
            yield
        finally:
            with self._lock:
                self._writing = max(0, self._writing - 1)  # a block that began before a fork ends in the child too
                self._release()

    def seal(self) -> None:
        """Begin another segment at the next append, so that the present one can be removed."""
        with self._lock:
            self._check_open()
            if self._active is not None:
                self._held.add(self._active)
                self._active = None
            self._release()

    def read(self, location: Location) -> memoryview:
        """Return the bytes, or a part of one payload's, as a read-only view.

        Raises:
            IntegrityError: No payload covers the location.
            ConflictError: The store is closed.
        """
        self._check_open()
        if location.length == 0:
            return EMPTY
        segment = self._segments.get(location.segment)
        index = bisect.bisect_right(segment.offsets, location.offset) - 1 if segment is not None else -1
        if segment is not None and index >= 0 and location.length > 0:
            start = location.offset - segment.offsets[index]
            view = memoryview(segment.payloads[index])[start : start + location.length]
            if len(view) == location.length:
                return view
        raise IntegrityError(f"nothing is stored at {location}: it was removed, or never written in this database")

    def check(self, location: Location) -> None:
        """Do nothing: memory cannot be cut short under a view."""

    def holds(self, segment: int) -> bool:
        """Tell whether a segment is there."""
        return segment in self._segments

    def reopen(self) -> None:
        """Do nothing: there are no files that could have been put in the place of others."""

    def damage_around(self, segment: int, offsets: Offsets, lengths: Offsets) -> list[str]:
        """Return nothing: there is nothing around payloads in memory."""
        return []

    def pin(self, segments: Iterable[int]) -> Pin:
        """Keep segments from being removed until the pin is closed."""
        token = object()
        # Without the lock, in single steps: a pin may be collected anywhere, also where this thread holds the lock.
        self._pinned[token] = frozenset(segments)
        return Pin(lambda: self._pinned.pop(token, None))

    def segments(self) -> list[SegmentInfo]:
        """List the segments by id: one, unless `seal` began another."""
        with self._lock:
            return [
                SegmentInfo(segment, content.end, self._is_live(segment))
                for segment, content in sorted(self._segments.items())
            ]

    def remove(self, segment: int) -> bool:
        """Free a segment unless it is pinned or still appended to (see `seal`); return whether it was removed."""
        with self._lock:
            self._check_open()
            if self._is_live(segment):
                return False
            self.released += 1
            return self._segments.pop(segment, None) is not None

    def close(self) -> None:
        """Free everything; closing twice is fine, views stay valid."""
        with self._lock:
            self._closed = True
            self._segments.clear()
            self._held.clear()
            self._active = None

    def after_fork(self) -> None:
        """Replace the lock in a child, and forget the blocks that threads of the parent have open."""
        self._lock, self._writing = threading.Lock(), 0

    def _is_live(self, segment: int) -> bool:
        pinned = any(segment in each for each in list(self._pinned.values()))
        return pinned or segment == self._active or segment in self._held

    def _release(self) -> None:
        if not self._writing:
            self._held.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise ConflictError("the payload store is closed: open the database again")


_stores: weakref.WeakSet[MemorySegments] = weakref.WeakSet()


def _after_fork() -> None:
    for store in _stores:
        store.after_fork()


os.register_at_fork(after_in_child=_after_fork)
