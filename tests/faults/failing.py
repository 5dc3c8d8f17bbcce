"""Failing the n-th call by which tensordb changes files: every one goes through `tensordb.files`.

A failed sync takes the bytes with it that it was for, as a system that dropped its dirty pages does.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import duckdb

from tensordb import files

CALLS = (
    *("open_file", "write", "write_at", "truncate", "sync_file", "sync_directory", "set_mode", "make_folder"),
    *("rename", "link", "unlink", "commit"),
)
KINDS: dict[str, tuple[str, ...]] = dict.fromkeys(CALLS, ("EIO", "ENOSPC")) | {
    "write": ("EIO", "ENOSPC", "short", "torn"),
    "write_at": ("EIO", "ENOSPC", "short", "torn"),
    "sync_file": ("EIO", "ENOSPC", "lost"),
    "commit": ("before", "after", "fatal before", "fatal after"),
}
MOST_KINDS = 5
"""Of each call: its own, and once that every call fails from there on."""


@dataclass
class Plan:
    """Which call fails, and how.

    Attributes:
        at: Number of the call, from 1; 0 for none.
        kind: Index into what its kind of call can do; the one behind the last fails all calls from there on.
        made: Names of the calls so far.
        failed: What was done to the call, None while it was not reached.
    """

    at: int = 0
    kind: int = 0
    made: list[str] = field(default_factory=list)
    failed: str | None = None
    unsynced: dict[int, list[tuple[int, int]]] = field(default_factory=dict)


@contextlib.contextmanager
def failing(plan: Plan) -> Iterator[Plan]:
    """Carry out the plan within the block."""
    real = {name: getattr(files, name) for name in CALLS}
    try:
        for name in CALLS:
            setattr(files, name, _wrapped(plan, name, real[name]))
        yield plan
    finally:
        for name in CALLS:
            setattr(files, name, real[name])


def _wrapped(plan: Plan, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        plan.made.append(name)
        kind = _kind(plan, name)
        if kind is None:
            _note(plan, name, arguments)
            return real(*arguments)
        plan.failed = f"call {len(plan.made)}, {name}: {kind}"
        return _fail(plan, kind, name, real, arguments)

    return call


def _kind(plan: Plan, name: str) -> str | None:
    number, kinds = len(plan.made), KINDS[name]
    if not plan.at or number < plan.at:
        return None
    if plan.kind >= len(kinds):  # from here on nothing works
        return kinds[0]
    return kinds[plan.kind] if number == plan.at else None


def _note(plan: Plan, name: str, arguments: tuple[Any, ...]) -> None:
    if name == "write":
        descriptor, views = arguments
        begin = os.lseek(descriptor, 0, os.SEEK_CUR)
        plan.unsynced.setdefault(descriptor, []).append((begin, sum(map(len, views))))
    elif name == "sync_file":
        plan.unsynced.pop(arguments[0], None)


def _fail(plan: Plan, kind: str, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    if name == "commit":
        if kind.endswith("after"):
            real(*arguments)
        raise (duckdb.FatalException if kind.startswith("fatal") else duckdb.IOException)(f"injected: {kind}")
    if kind in ("short", "torn"):
        written = _half(name, real, arguments)
        if kind == "short":
            return written
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    if kind == "lost":
        for begin, nbytes in plan.unsynced.pop(arguments[0], []):
            inside = max(0, min(nbytes, os.fstat(arguments[0]).st_size - begin))
            os.pwrite(arguments[0], bytes(inside), begin)
        kind = "EIO"
    number = getattr(errno, kind)
    raise OSError(number, os.strerror(number))


def _half(name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    if name == "write_at":
        descriptor, view, offset = arguments
        return int(real(descriptor, view[: max(1, len(view) // 2)], offset))
    descriptor, views = arguments
    data = b"".join(views)
    return int(real(descriptor, [memoryview(data)[: max(1, len(data) // 2)]]))
