"""A lock among the threads of one process that serves them in the order they came.

``threading.RLock`` lets a thread in a tight loop take the lock again and again while others sleep. Here a release
hands the lock to the thread that has waited longest.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class _Turn:
    """One waiting thread: `called` is held until the lock is handed to it."""

    thread: int
    called: threading.Lock = field(default_factory=threading.Lock)
    granted: bool = False


class FairLock:
    """A reentrant lock, first come first served.

    Invariant: while threads wait, somebody owns the lock; a release passes it on without letting go in between.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._owner: int | None = None
        self._depth = 0
        self._waiting: deque[_Turn] = deque()

    @property
    def held(self) -> int:
        """How often the calling thread has taken the lock, and not given it back yet."""
        return self._depth if self._owner == threading.get_ident() else 0

    def acquire(self, timeout: float) -> bool:
        """Take the lock, waiting at most `timeout` seconds; False when it was not to be had."""
        me = threading.get_ident()
        with self._mutex:
            if self._owner is None or self._owner == me:
                self._owner = me
                self._depth += 1
                return True
            if timeout <= 0:
                return False
            turn = _Turn(me)
            turn.called.acquire()
            self._waiting.append(turn)
        try:
            turn.called.acquire(timeout=min(timeout, threading.TIMEOUT_MAX))
        except BaseException:
            if not self._withdraw(turn):
                self.release()
            raise
        return not self._withdraw(turn)

    def _withdraw(self, turn: _Turn) -> bool:
        """Stop waiting; False when the lock was handed to this turn before."""
        with self._mutex:
            if turn.granted:
                return False
            self._waiting.remove(turn)
            return True

    def release_to(self, held: int) -> None:
        """Give back what the calling thread has taken since `held` was so much."""
        while self.held > held:
            self.release()

    def release(self) -> None:
        """Give back one acquisition; the last one hands the lock to whoever waits longest."""
        with self._mutex:
            self._depth -= 1
            if self._depth:
                return
            if not self._waiting:
                self._owner = None
                return
            turn = self._waiting.popleft()
            self._owner, self._depth, turn.granted = turn.thread, 1, True
            turn.called.release()
