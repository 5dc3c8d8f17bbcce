"""A process of its own that may use only so many cores, for figures with one thread and with two.

Threads of torch sleep there while they wait for each other: on a busy machine those that spin would keep the cores from
those they wait for, which makes figures for two threads worthless and the making of data very slow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

_WAITING = "OMP_WAIT_POLICY"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


@contextmanager
def pinned(count: int) -> Iterator[ProcessPoolExecutor]:
    """Start a process on the first `count` cores; what is submitted runs there, one after the other."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        with _surroundings(count):
            process.submit(cores).result()
        yield process


@contextmanager
def _surroundings(count: int) -> Iterator[None]:
    """Set what a child inherits, so that its libraries find so many cores when they look."""
    before = os.environ.get(_WAITING)
    os.environ[_WAITING] = "PASSIVE"
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if allowed:
        os.sched_setaffinity(0, sorted(allowed)[:count])
    try:
        yield
    finally:
        if allowed:
            os.sched_setaffinity(0, allowed)
        if before is None:
            del os.environ[_WAITING]
        else:
            os.environ[_WAITING] = before
