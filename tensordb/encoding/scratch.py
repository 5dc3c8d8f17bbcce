"""Memory that a thread uses again for each chunk: what the system gives out anew it clears first, page by page."""

from __future__ import annotations

import threading
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_KEPT = 1 << 20
"""Bytes up to which memory is kept for the next time."""
_thread = threading.local()


def scratch(use: Literal["base", "words"], nbytes: int) -> NDArray[np.uint8]:
    """Return memory that is the caller's until the thread asks for this use again."""
    if nbytes > _KEPT:
        return np.empty(nbytes, np.uint8)
    known: dict[str, NDArray[np.uint8]] | None = getattr(_thread, "known", None)
    if known is None:
        known = _thread.known = {}
    found = known.get(use)
    if found is None or found.nbytes < nbytes:
        found = known[use] = np.empty(nbytes, np.uint8)
    return found[:nbytes]
