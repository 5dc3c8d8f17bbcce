"""What happens to leases when the process forks.

DuckDB in a child that inherited an open connection would checkpoint and unlink the parent's write-ahead log. So a fork
waits until no other thread is inside DuckDB, and the child then disowns what it inherited and opens for itself.
"""

from __future__ import annotations

import os
import threading
import weakref

from tensordb.catalog.lease_session import LeaseSession

PATIENCE = 5.0
"""Seconds that a fork waits for a running operation; after that the child cannot use that lease."""

# A plain dict: it can be copied in one step while other threads open leases, a WeakSet cannot.
_guarded: dict[int, weakref.ref[LeaseSession]] = {}
_installed = threading.Event()


class _Forking(threading.local):
    """The sessions of the fork that this thread is in, each with whether it is quiet."""

    def __init__(self) -> None:
        self.sessions: list[tuple[LeaseSession, bool]] = []


_forking = _Forking()


def guard(session: LeaseSession) -> None:
    """Make `session` survive forks from now on."""
    key = id(session)
    _guarded[key] = weakref.ref(session, lambda _: _guarded.pop(key, None))
    if hasattr(os, "register_at_fork") and not _installed.is_set():
        _installed.set()
        os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)


def _before() -> None:
    _forking.sessions = []
    for reference in list(_guarded.values()):
        session = reference()
        if session is not None:
            _forking.sessions.append((session, session.quiesce(PATIENCE)))


def _after_in_parent() -> None:
    sessions, _forking.sessions = _forking.sessions, []
    for session, quiet in sessions:
        if quiet:
            session.resume()


def _after_in_child() -> None:
    sessions, _forking.sessions = _forking.sessions, []
    for session, quiet in sessions:
        session.restart_in_child(quiet=quiet)
