"""When a module of compiled kernels is loaded, and by whom."""

from __future__ import annotations

import importlib
import os
import threading
from types import ModuleType
from typing import Any

WORTH_LOADING = 64 << 20
"""Bytes of work after which a module is loaded."""


class Loader:
    """One module of kernels, loaded by a thread when enough work has been asked for."""

    def __init__(self, module: str) -> None:
        self._name = module
        self._lock = threading.Lock()
        self._worked = 0
        self._thread: threading.Thread | None = None
        self._module: ModuleType | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._settle, after_in_child=self._renew_lock)

    def ready(self, nbytes: int) -> Any:
        """Return the module, or None for NumPy to do this work of `nbytes` bytes; never waits for it."""
        if self._module is None and self._thread is None:
            self._worked += nbytes  # a lost update only means that loading begins a little later
            if self._worked >= WORTH_LOADING:
                self.begin()
        return self._module

    def load(self) -> bool:
        """Load the module now; return whether it can be used."""
        thread = self.begin()
        if thread is not None:
            thread.join()
        return self._module is not None

    def begin(self) -> threading.Thread | None:
        """Start loading unless that has been done, and return the thread that does it."""
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._load, name="tensordb-kernels")
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is exiting and starts no threads any more
                    return None
                self._thread = thread
            return self._thread

    def _load(self) -> None:
        try:
            self._module = importlib.import_module(f"tensordb.encoding.kernels.{self._name}")
        except Exception:  # numba is absent, or does not work here: NumPy goes on doing the work
            self._module = None

    def _settle(self) -> None:
        """Before a fork: a child would inherit the import locks of a thread that it does not have."""
        with self._lock:  # between the start of the thread and the note of it
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()
