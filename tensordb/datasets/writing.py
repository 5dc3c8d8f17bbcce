"""Encoding and writing many batches in the background, while the caller goes on with what comes with them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import TypeVar

from tensordb.datasets.batching import Batch
from tensordb.encoding.pipeline import EncodedTensor, encode
from tensordb.encoding.summing import Statistics, summarize
from tensordb.encoding.workers import alone
from tensordb.engine import Database, Stored

Result = TypeVar("Result")

_ENCODERS = 2
"""Batches encoded at a time: the work is mostly outside of the GIL, but not all of it."""
_AHEAD_NBYTES = 64 << 20
"""Raw bytes that may be encoded at a time, and at least one batch."""
_SYNCED_NBYTES = 32 << 20
"""Payload bytes that are synced while others are encoded; what is left at the end is then soon durable."""
_BEHIND = 2
"""Batches that may wait to be written while others are encoded."""


def written(db: Database, source: Iterator[Batch]) -> Iterator[tuple[Batch, Stored, Statistics]]:
    """Yield the batches once they are encoded and written, in their order, with the statistics of each record.

    Payloads are in segments then, or known to be stored; they are not yet all durable. Inside a `writing` block.
    """
    encoding: deque[tuple[Batch, Future[tuple[EncodedTensor, Statistics]]]] = deque()
    writing: deque[tuple[Batch, Future[Stored], Statistics]] = deque()
    ahead = unsynced = 0
    # Each look-up costs a millisecond. What another process stores or deletes meanwhile is found out at the commit.
    stored_before = db.writer.few_stored()
    with ThreadPoolExecutor(_ENCODERS) as encoders, ThreadPoolExecutor(1) as appender, ThreadPoolExecutor(1) as syncer:

        def advance() -> int:
            """Hand the oldest batch from the encoders to the appender."""
            nonlocal unsynced
            batch, future = encoding.popleft()
            encoded, statistics = future.result()
            # Asked in this thread: inside a transaction no other one can.
            known = not batch.is_page and (
                db.writer.is_stored(encoded) if stored_before is None else encoded.object_id in stored_before
            )
            writing.append((batch, _begun(appender, partial(db.writer.append, encoded, known=known)), statistics))
            unsynced += encoded.nbytes
            if unsynced >= _SYNCED_NBYTES:
                # Beside the appender, which goes on meanwhile. When it fails, the flush before the commit says so.
                _begun(syncer, db.payloads.flush)
                unsynced = 0
            return batch.tensor.nbytes

        for batch in source:
            while encoding and (len(encoding) > _ENCODERS or ahead + batch.tensor.nbytes > _AHEAD_NBYTES):
                ahead -= advance()
            encoding.append((batch, _begun(encoders, partial(_encoded, batch, crowded=bool(encoding)))))
            ahead += batch.tensor.nbytes
            while len(writing) > _BEHIND:
                yield _finished(writing)
        while encoding:
            advance()
        while writing:
            yield _finished(writing)


def _encoded(batch: Batch, *, crowded: bool) -> tuple[EncodedTensor, Statistics]:
    # One after the other, as what was summed up is in the cache then. A page beside others needs one core, not all.
    with alone() if crowded and batch.is_page else nullcontext():
        statistics = summarize(batch.tensor, page=batch.is_page)
        return encode(batch.tensor, batch.config, page=batch.is_page), statistics


def _begun(executor: ThreadPoolExecutor, work: Callable[[], Result]) -> Future[Result]:
    """Begin work in the background; an interpreter that is exiting starts no threads, and this one does it."""
    try:
        return executor.submit(work)
    except RuntimeError:
        done: Future[Result] = Future()
        try:
            done.set_result(work())
        except Exception as error:
            done.set_exception(error)
        return done


def _finished(writing: deque[tuple[Batch, Future[Stored], Statistics]]) -> tuple[Batch, Stored, Statistics]:
    batch, future, statistics = writing.popleft()
    return batch, future.result(), statistics
