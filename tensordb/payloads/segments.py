"""The payloads of a folder: append-only segment files, mapped for reading.

Owns the files in `segments/`. It looks into no payload and keeps no index: the catalog names every place, and what it
names no more is dead until `compact` moves the rest and `gc` removes the file. FORMAT.md describes the files.
"""

from __future__ import annotations

import os
import stat
import weakref
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from tensordb.errors import ConflictError, InvalidInputError, ReadOnlyError
from tensordb.payloads.appender import Appender
from tensordb.payloads.base import Location, Produce, SegmentInfo, as_views
from tensordb.payloads.files import store_error
from tensordb.payloads.maps import SegmentMaps
from tensordb.payloads.pins import Pin, pin_files
from tensordb.payloads.surroundings import Offsets, damage_around
from tensordb.payloads.writer import is_live, remove_dead, segment_of, segment_path

if TYPE_CHECKING:
    from typing_extensions import Buffer


class SegmentStore:
    """A folder's payloads, shared by any number of stores in any number of processes.

    Each store appends to segments that it alone holds (by flock). It begins with one that an earlier writer closed in
    good order and that has room, so that a thousand short runs leave one file and not a thousand, and makes its own
    otherwise. A store that is not closed gives its segments up when it is collected or the interpreter exits.

    Args:
        folder: The `segments` folder of a database; made at the first append.
        read_only: Refuse `append` and `remove`.
        database_id: 16 bytes; a segment of another database is refused.
        max_segment_bytes: Where the next segment begins; a larger payload gets a segment for itself.

    Raises:
        InvalidInputError: `database_id` is not 16 bytes long.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = SegmentStore(Path(folder) / "segments", read_only=False, database_id=bytes(16))
    ...     with store.writing():
    ...         location = store.append([b"encoded ", b"bytes"])
    ...         store.flush()
    ...     bytes(store.read(location))
    ...     store.close()
    b'encoded bytes'
    """

    def __init__(self, folder: Path, *, read_only: bool, database_id: bytes, max_segment_bytes: int = 1 << 30) -> None:
        if len(database_id) != 16:
            raise InvalidInputError(f"database_id has {len(database_id)} bytes: give the database's own 16")
        self._folder = folder
        self._database_id = database_id
        self._closed = False
        self._maps = SegmentMaps(folder, database_id)
        self._appender = None if read_only else Appender(folder, database_id, max_segment_bytes)
        if self._appender is not None:
            self._finalizer = weakref.finalize(self, self._appender.close)

    def append(self, buffers: Sequence[Buffer]) -> Location:
        """Write the buffers one after another as one payload at a multiple of 64, not yet durable.

        Raises:
            StorageFullError: No space, quota, or file size left; the store stays usable and nothing is lost.
            StoreError: Another fault of the file system.
            ReadOnlyError: The store was opened for reading.
            ConflictError: The store is closed.
        """
        return self._writable().append(as_views(buffers))

    def append_growing(self, lead: int, most: int, produce: Produce) -> Location | None:
        """Write a payload while it is being made, its first `lead` bytes last; see `PayloadStore.append_growing`.

        Other threads append to another segment meanwhile.

        Raises:
            StorageFullError: No space, quota, or file size left; the store stays usable and nothing is lost.
            StoreError: Another fault of the file system.
            ReadOnlyError: The store was opened for reading.
            ConflictError: The store is closed.
        """
        return self._writable().append_growing(lead, most, produce)

    def flush(self) -> None:
        """Make every payload appended so far durable, with its file; only then may a catalog row name it.

        Raises:
            StoreError: A sync failed since this thread last flushed. The segment is given up; payloads that this
                thread appended since must not be named, but appended again (they go to another segment).
        """
        if self._appender is not None:
            self._appender.flush()

    def writing(self) -> AbstractContextManager[None]:
        """Guard append, flush and the catalog's commit: segments written inside cannot be removed before the end.

        The segment being appended to is safe from `remove` by itself; the block keeps those before it safe, too.
        Blocks may overlap and nest. Without any, full segments stay locked until `close`.
        """
        return self._writable().writing()

    def seal(self) -> None:
        """Begin another segment at the next append, in every process, so that the present one can be compacted away.

        It becomes removable once no `writing` block is open.
        """
        self._writable().seal()

    def read(self, location: Location) -> memoryview:
        """Return the mapped bytes as a read-only view that stays valid after `remove` and `close`.

        Raises:
            IntegrityError: The file is missing, damaged at its head, foreign, or shorter than the location says.
            FormatError: The file was written in a format that this release does not know.
            StoreError: The file cannot be opened or mapped.
            ConflictError: The store is closed.
        """
        if self._closed:
            raise _closed_error()
        return self._maps.read(location)

    def check(self, location: Location) -> None:
        """Check that a view read earlier can still be touched: a file cut short since would end the process by SIGBUS.

        Raises:
            IntegrityError: The file is shorter than the location says.
        """
        self._maps.check(location)

    @property
    def released(self) -> int:
        """How many segments were found to be removed, by whichever process; views keep them alive."""
        return self._maps.released

    def holds(self, segment: int) -> bool:
        """Tell whether a segment is mapped."""
        return self._maps.holds(segment)

    def reopen(self) -> None:
        """Open every file anew at the next `read`: one may have been put back from a copy. Views stay valid."""
        self._maps.clear()

    def damage_around(self, segment: int, offsets: Offsets, lengths: Offsets) -> list[str]:
        """Return what is damaged in a segment's file around these payloads: header, footer, padding.

        Raises:
            StoreError: The file cannot be read.
        """
        path = segment_path(self._folder, segment)
        return damage_around(path, segment, self._database_id, offsets, lengths)

    def pin(self, segments: Iterable[int]) -> Pin:
        """Keep segments from being removed by any process until the pin is closed.

        The caller must hold the catalog that names them.

        Raises:
            StoreError: A file cannot be opened.
        """
        return pin_files(segment_path(self._folder, segment) for segment in sorted(set(segments)))

    def segments(self) -> list[SegmentInfo]:
        """List the segments by id; `live` is whether a store or a pin of any process, this one included, holds it."""
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise store_error("listing", self._folder, error) from error
        infos = (self._info(segment) for name in names if (segment := segment_of(name)) is not None)
        return [info for info in infos if info is not None]

    def remove(self, segment: int) -> bool:
        """Unlink a segment's file unless a store or a pin holds it; return whether it was removed. Views stay valid.

        The caller must keep the catalog's write lease from reading which segments are named until this returns:
        a writer that has yet to commit holds its segment, one that has committed is seen in the catalog.

        Raises:
            ReadOnlyError: The store was opened for reading.
            StoreError: The file system refused.
        """
        self._writable()
        removed = remove_dead(segment_path(self._folder, segment))
        if removed:
            self._maps.drop(segment)
        return removed

    def close(self) -> None:
        """Give up the segments and the maps; closing twice is fine.

        Views stay valid. What was not flushed may be lost.
        """
        self._closed = True
        self._maps.clear()
        if self._appender is not None:
            self._finalizer()

    def _writable(self) -> Appender:
        if self._appender is None:
            raise ReadOnlyError(f"{self._folder} was opened read-only: open the database for writing")
        if self._closed:
            raise _closed_error()
        return self._appender

    def _info(self, segment: int) -> SegmentInfo | None:
        path = segment_path(self._folder, segment)
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):  # somebody's folder or pipe of such a name: nothing of ours
                return None
            return SegmentInfo(segment, found.st_size, is_live(path))
        except FileNotFoundError:  # removed by another process while we were looking
            return None
        except OSError as error:
            raise store_error("looking at", path, error) from error


def _closed_error() -> ConflictError:
    return ConflictError("the segment store is closed: open the database again")
