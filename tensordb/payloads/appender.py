"""What a store appends to: its own segments, from the first payload to the catalog's commit.

Invariants: a segment stays locked until no commit can still be on its way that names it; a payload is acknowledged
by `flush` only when its bytes and its file's name reached the disk; after a failed sync the segment is never synced
again as if that could repair it; the child of a fork starts without any of its parent's segments.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from tensordb import files
from tensordb.errors import ConflictError, StoreError
from tensordb.forks import mend_after_fork
from tensordb.payloads.base import Location, Produce, as_views
from tensordb.payloads.files import store_error
from tensordb.payloads.writer import SegmentWriter


class Appender:
    """The writing half of a `SegmentStore`; safe to use from threads.

    Args:
        folder: Where segment files are made; created at the first append.
        database_id: Written into their headers.
        limit: Bytes at which a segment is followed by the next.
    """

    def __init__(self, folder: Path, database_id: bytes, limit: int) -> None:
        self._folder = folder
        self._database_id = database_id
        self._limit = limit
        self._active: SegmentWriter | None = None
        self._retired: list[SegmentWriter] = []  # appended to no more, held for the commits still on their way
        self._growing: list[SegmentWriter] = []  # one thread each writes a payload to these while it is made
        self._idle: list[SegmentWriter] = []  # come back from that while another one had become active
        self._writing = 0
        self._adopts = True
        self._failures = 0
        self._closed = False
        self._seen = threading.local()
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()  # taken before _lock; descriptors are closed only under both
        mend_after_fork(self)

    def append(self, views: list[memoryview]) -> Location:
        """Write flat byte views as one payload; an error leaves everything as it was before."""
        nbytes = sum(map(len, views))
        with self._lock:
            if not hasattr(self._seen, "failures"):
                self._seen.failures = self._failures
            writer = self._writer_for(nbytes)
            try:
                return writer.append(views, nbytes)
            except BaseException as error:
                if not writer.rewind():
                    self._retire(writer, sealed=True)
                if isinstance(error, OSError):
                    raise store_error(f"writing {nbytes} bytes to a segment in", self._folder, error) from error
                raise

    def append_growing(self, lead: int, most: int, produce: Produce) -> Location | None:
        """Write a payload while it is made, in a segment that other threads do not append to meanwhile."""
        with self._lock:
            if not hasattr(self._seen, "failures"):
                self._seen.failures = self._failures
            writer = self._writer_for(most)
            self._active = None
            self._growing.append(writer)
        place = None
        try:
            payload = writer.begin(lead)
            first = produce(lambda buffers: payload.write(as_views(buffers)))
            place = None if first is None else payload.finish(memoryview(first).cast("B"))
        except OSError as error:
            raise store_error(f"writing up to {most} bytes to a segment in", self._folder, error) from error
        finally:
            self._return(writer, whole=place is not None or writer.rewind())
        if self._closed:
            raise ConflictError("the segment store was closed while a payload was written: open the database again")
        return place

    def _return(self, writer: SegmentWriter, *, whole: bool) -> None:
        """Take a segment back that one thread had for itself."""
        with self._sync_lock, self._lock:
            self._growing.remove(writer)
            if self._closed:
                writer.close()
            elif whole and not writer.sealed:
                self._idle.append(writer)
                self._active = self._active or self._idle.pop()
            else:
                self._retired.append(writer)
                if not whole:
                    writer.seal()

    def flush(self) -> None:
        """Sync every segment appended to; raise StoreError when payloads since this thread's last flush may be lost."""
        with self._sync_lock:
            with self._lock:
                held = (*self._retired, *self._growing, *self._idle, self._active)
                pending = [writer for writer in held if writer and writer.dirty]
            cause = None
            for writer in pending:
                cause = self._sync(writer) or cause
            # Every thread in a `writing` block learns of every failure since it began, once: any of them may have had
            # payloads in that segment. A thread in no block has none to lose but through this very flush.
            before = self._failures if cause is None else self._failures - 1
            seen, self._seen.failures = getattr(self._seen, "failures", before), self._failures
        if seen != self._seen.failures:
            raise self._lost(cause) from cause

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold every segment written inside the block until the last such block ends."""
        depth = getattr(self._seen, "depth", 0)
        with self._lock:
            self._writing += 1
            if not depth:
                self._seen.failures = self._failures
        self._seen.depth = depth + 1
        try:
            yield
        finally:
            self._seen.depth = depth
            with self._lock:
                self._writing = max(0, self._writing - 1)  # a block that began before a fork ends in the child too
            self._release()

    def seal(self) -> None:
        """Begin a new segment at the next append; the present one is let go once no `writing` block is open."""
        with self._lock:
            self._adopts = False
            for writer in self._growing:
                writer.seal()
            for writer in (*self._idle, *([self._active] if self._active else [])):
                self._retire(writer, sealed=True)
        self._release()

    def close(self) -> None:
        """Let go of every segment, whatever blocks are open."""
        with self._sync_lock, self._lock:
            self._closed = True
            writers = [*self._retired, *self._idle, *([self._active] if self._active else [])]
            self._active, self._retired, self._idle = None, [], []
            for writer in writers:
                writer.close()

    def after_fork(self) -> None:
        """Forget the parent's segments in a child, and the locks that the parent's threads may have held."""
        self._lock, self._sync_lock = threading.Lock(), threading.Lock()
        writers = [*self._retired, *self._growing, *self._idle, *([self._active] if self._active else [])]
        self._active, self._retired, self._growing, self._idle, self._writing = None, [], [], [], 0
        for writer in writers:
            writer.forget()

    def _writer_for(self, nbytes: int) -> SegmentWriter:
        if self._closed:
            raise ConflictError("the segment store is closed: open the database again")
        if self._active is not None and self._active.has_payloads and self._active.end + nbytes > self._limit:
            self._retire(self._active)
        while self._active is None and self._idle:
            self._active = self._idle.pop()
            if self._active.end + nbytes > self._limit:
                self._retire(self._active)
        if self._active is None:
            try:
                with contextlib.suppress(FileExistsError):
                    files.make_folder(self._folder)
                adopted = self._adopts and SegmentWriter.adopt(self._folder, self._database_id, nbytes, self._limit)
                self._active = adopted or SegmentWriter.create(self._folder, self._database_id)
                self._adopts = False  # what others closed since then may be what is being compacted away
            except OSError as error:
                raise store_error("beginning a segment in", self._folder, error) from error
        return self._active

    def _retire(self, writer: SegmentWriter, *, sealed: bool = False) -> None:
        if sealed:
            writer.seal()
        if writer is self._active:
            self._active = None
            self._retired.append(writer)
        elif writer in self._idle:
            self._idle.remove(writer)
            self._retired.append(writer)

    def _release(self) -> None:
        with self._sync_lock, self._lock:
            if not self._writing:
                held = [writer for writer in self._retired if writer.dirty]
                released = [writer for writer in self._retired if not writer.dirty]
                self._retired = held
                for writer in released:
                    writer.close()

    def _sync(self, writer: SegmentWriter) -> OSError | None:
        writer.dirty = False  # before the sync, so that what is appended meanwhile counts for the next
        try:
            writer.sync()
        except OSError as error:
            with self._lock:
                self._failures += 1
                self._retire(writer, sealed=True)
            return error
        except BaseException:
            writer.dirty = True  # interrupted before anything was known
            raise
        return None

    def _lost(self, cause: OSError | None) -> StoreError:
        if cause is not None:
            return store_error("syncing a segment in", self._folder, cause)
        return StoreError(
            f"syncing a segment in {self._folder} failed in another thread: what this thread wrote since it last "
            "flushed may not be on the disk; nothing stored before is affected, write it again"
        )
