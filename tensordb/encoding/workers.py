"""One pool of threads that the hot loops share: made when first needed, and anew in a forked child."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

WORTH_WAKING = 8
"""Calls from which on it pays to wake other threads, which can take longer than some chunks do."""

Result = TypeVar("Result")

_lock = threading.Lock()
_pool: tuple[int, ThreadPoolExecutor] | None = None
_inside = threading.local()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _shared_pool() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        # Threads do not survive a fork; a child that kept the parent's pool would wait for them for ever.
        if _pool is None or _pool[0] != os.getpid():
            _pool = (os.getpid(), ThreadPoolExecutor(_cores(), thread_name_prefix="tensordb-encoding"))
        return _pool[1]


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    # A fork may happen while another thread holds the lock, and that thread does not exist in the child.
    os.register_at_fork(after_in_child=_renew_lock)


def for_each(count: int, work: Callable[[int], None], *, worth: int = WORTH_WAKING) -> None:
    """Call ``work(i)`` for each i below `count`, on all cores, and return when all are done.

    The calling thread takes part. A call from within `work` runs in its own thread, so nesting cannot deadlock. The
    first exception is raised after the calls under way have ended; no new ones are started. Below `worth` calls nobody
    else is woken.
    """
    cores = min(_cores(), count)
    if cores <= 1 or count < worth or getattr(_inside, "active", False):
        for index in range(count):
            work(index)
        return
    # next() of a range iterator is atomic, so that each thread takes the next index when it is free.
    remaining = iter(range(count))
    stop = threading.Event()

    def drain() -> None:
        _inside.active = True
        try:
            for index in remaining:
                if stop.is_set():
                    return
                work(index)
        except BaseException:
            stop.set()
            raise
        finally:
            _inside.active = False

    futures = _submit(drain, cores - 1)
    try:
        drain()
    finally:
        _settle(futures)
    for future in futures:
        if not future.cancelled():
            future.result()


class InOrder:
    """Hands results that threads finish in any order to `take` in their own, one at a time.

    A thread whose result is not the next one leaves it and goes on; whoever brings the next takes those that wait.
    """

    def __init__(self, take: Callable[[Any], None]) -> None:
        self._take = take
        self._waiting: dict[int, Any] = {}
        self._next = 0
        self._lock = threading.Lock()

    def put(self, index: int, result: Any) -> None:
        """Bring result number `index`."""
        self._waiting[index] = result
        # Looked at again after each release: another thread may have left the next result just before it.
        while self._next in self._waiting and self._lock.acquire(blocking=False):
            try:
                while self._next in self._waiting:
                    self._take(self._waiting.pop(self._next))
                    self._next += 1
            finally:
                self._lock.release()


@contextmanager
def alone() -> Iterator[None]:
    """Do everything in this thread inside the block: other processes have the other cores."""
    before = getattr(_inside, "active", False)
    _inside.active = True
    try:
        yield
    finally:
        _inside.active = before


def start(work: Callable[[], Result]) -> Callable[[], Result]:
    """Begin `work` on the pool and return what waits for its result; from within the pool it runs at once."""
    if not getattr(_inside, "active", False) and _cores() > 1:
        try:
            return _shared_pool().submit(work).result
        except RuntimeError:
            pass  # exiting: see _submit
    result = work()
    return lambda: result


def _submit(work: Callable[[], None], times: int) -> list[Future[None]]:
    try:
        return [_shared_pool().submit(work) for _ in range(times)]
    except RuntimeError:
        # The interpreter is exiting and starts no threads any more; the calling thread does all of it.
        return []


def _settle(futures: list[Future[None]]) -> None:
    wait([future for future in futures if not future.cancel()])
