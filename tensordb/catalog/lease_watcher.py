"""The thread that looks after an idle lease.

It holds its lease weakly, so that a forgotten lease can be collected. It is stopped while the process forks: a child
would keep what stood on its stack until the end, and its exit would report DuckDB's types as leaked.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

Tend = Callable[[], float | None]
"""Does what is due, and returns the seconds until the next look, or None: not before `Watcher.wake`."""


class Watcher:
    """Calls a method again and again from a thread of its own, for as long as the method's object lives."""

    def __init__(self, tend: Tend) -> None:
        self._tend = weakref.WeakMethod(tend)
        self._alarm = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Look at once, and start the thread when there is none yet."""
        self._alarm.set()
        if self._thread is None:
            # Not joined by the interpreter before its exit functions run: one of them is what stops it.
            self._thread = threading.Thread(target=self._watch, name="tensordb-lease", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread for good and wait for it."""
        self._stopped = True
        self._alarm.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _watch(self) -> None:
        pause: float | None = 0.0
        while not self._stopped:
            if self._alarm.wait(pause):
                self._alarm.clear()
            tend = self._tend()
            if tend is None or self._stopped:
                return
            pause = tend()
            del tend
