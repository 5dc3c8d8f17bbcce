"""Saving in the background: one checkpoint at a time, copied before the caller goes on.

Invariants: at most one copy of the state is in memory; whoever saves next waits until the one before is written. The
thread is no daemon, so that an interpreter that exits waits for it. An error is raised once: where it is waited for,
or else by the next call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from tensordb.checkpoints.checkpoint import Checkpoint
from tensordb.errors import ConflictError, DatabaseBusyError
from tensordb.forks import mend_after_fork


class PendingCheckpoint:
    """A checkpoint that is being written in the background."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._result: Checkpoint | None = None
        self._error: BaseException | None = None
        self._seen = False
        mend_after_fork(self)

    def after_fork(self) -> None:
        """Say in a child that only the parent's thread can know: nobody would ever set what is waited for."""
        if self._result is None and self._error is None:
            self._error = ConflictError(
                "this process was forked while its parent was writing the checkpoint; wait for it in the parent"
            )
        self._done = threading.Event()
        self._done.set()

    def done(self) -> bool:
        """Tell whether it is written, or failed."""
        return self._done.is_set()

    def wait(self, timeout: float | None = None) -> Checkpoint:
        """Return the checkpoint once it is durable.

        Args:
            timeout: Seconds to wait at most; None for as long as it takes.

        Raises:
            DatabaseBusyError: It is not written yet after `timeout`; it still will be.
            TensorDBError: What went wrong; nothing of the checkpoint is visible.
        """
        if not self._done.wait(timeout):
            raise DatabaseBusyError(f"the checkpoint was not written within {timeout} seconds; wait longer")
        self._seen = True
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def __repr__(self) -> str:
        if not self.done():
            return "PendingCheckpoint(being written)"
        return f"PendingCheckpoint({self._result!r})" if self._error is None else f"PendingCheckpoint({self._error!r})"


class Background:
    """Writes the checkpoints of one storage one after the other, each in a thread of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: PendingCheckpoint | None = None
        mend_after_fork(self)

    def after_fork(self) -> None:
        """Forget the parent's thread, which a child does not have."""
        self._lock = threading.Lock()
        self._current = None

    def settle(self) -> None:
        """Wait until nothing is being written; raise the error of what failed and was not waited for."""
        current = self._current
        if current is None:
            return
        current._done.wait()
        with self._lock:
            if self._current is current:
                self._current = None
        if not current._seen:
            current.wait()

    def start(self, copy: Callable[[], Callable[[], Checkpoint]]) -> PendingCheckpoint:
        """Begin to write a checkpoint once the one before is written.

        Args:
            copy: Copies what is to be saved and returns what writes it; called before this returns.
        """
        with self._lock:
            previous = self._current
            if previous is not None:
                previous._done.wait()
                self._current = None
                if not previous._seen:
                    _raise_late(previous)
            write = copy()
            pending = PendingCheckpoint()
            thread = threading.Thread(target=_run, args=(pending, write), name="tensordb-checkpoint")
            thread.start()
            self._current = pending
            return pending


def _raise_late(failed: PendingCheckpoint) -> None:
    """Raise what went wrong with the checkpoint before, if anything did."""
    try:
        failed.wait()
    except BaseException as error:
        error.add_note("This is about the checkpoint saved before; the one asked for now was not saved either.")
        raise


def _run(pending: PendingCheckpoint, write: Callable[[], Checkpoint]) -> None:
    try:
        pending._result = write()
    except BaseException as error:
        pending._error = error
    finally:
        pending._done.set()
