"""When the compiled kernels are loaded, and by whom."""

from __future__ import annotations

import importlib
import os
import threading
from types import ModuleType
from typing import Any

WORTH_LOADING = 64 << 20
"""Bytes of work after which the kernels are loaded."""

_lock = threading.Lock()
_worked = 0
_loader: threading.Thread | None = None
_kernels: ModuleType | None = None
_scaling: ModuleType | None = None


def ready(nbytes: int) -> Any:
    """Return the module `compiled`, or None for NumPy to do this work of `nbytes` bytes; never waits for it."""
    global _worked
    if _kernels is None and _loader is None:
        _worked += nbytes  # a lost update only means that loading begins a little later
        if _worked >= WORTH_LOADING:
            _begin()
    return _kernels


def scaling_loops() -> Any:
    """Return the module `scaling`, which is loaded together with `compiled`, or None."""
    return _scaling


def load() -> bool:
    """Load the kernels now; return whether they can be used.

    The first time on a machine they are compiled, which takes some seconds; the result is kept beside the package, or
    in the user's cache directory.
    """
    loader = _begin()
    if loader is not None:
        loader.join()
    return _kernels is not None


def _begin() -> threading.Thread | None:
    global _loader
    with _lock:
        if _loader is None:
            thread = threading.Thread(target=_load, name="tensordb-kernels")
            try:
                thread.start()
            except RuntimeError:  # the interpreter is exiting and starts no threads any more
                return None
            _loader = thread
        return _loader


def _load() -> None:
    global _kernels, _scaling
    try:
        _scaling = importlib.import_module("tensordb.encoding.kernels.scaling")
        _kernels = importlib.import_module("tensordb.encoding.kernels.compiled")
    except Exception:  # numba is absent, or does not work here: NumPy goes on doing the work
        _kernels = _scaling = None


def _settle() -> None:
    """Before a fork: a child would inherit the import locks of a thread that it does not have."""
    with _lock:  # between the start of the thread and the note of it
        loader = _loader
    if loader is not None and loader is not threading.current_thread():
        loader.join()


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_settle, after_in_child=_renew_lock)
