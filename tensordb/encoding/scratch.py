"""Memory that a thread uses again for each chunk: what the system gives out anew it clears first, page by page.

Invariant: memory that somebody still looks at is not given out again, be it that a signal's handler encodes or decodes
in the midst of that.
"""

from __future__ import annotations

import sys
import threading
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_KEPT = 1 << 20
"""Bytes up to which memory is kept for the next time."""
_EACH = 2
"""Pieces that are kept for each use: a loop still holds its last one when it asks for the next."""
_UNUSED = 3
"""References to a piece that only this module knows: the list's, the loop's, and that of the question."""
_thread = threading.local()


def scratch(use: Literal["base", "groups", "words"], nbytes: int) -> NDArray[np.uint8]:
    """Return memory that is the caller's for as long as he holds it."""
    if nbytes > _KEPT:
        return np.empty(nbytes, np.uint8)
    known: dict[str, list[NDArray[np.uint8]]] | None = getattr(_thread, "known", None)
    if known is None:
        known = _thread.known = {}
    pieces = known.get(use, [])
    for piece in pieces:
        if piece.nbytes >= nbytes and sys.getrefcount(piece) <= _UNUSED:
            return piece[:nbytes]
    fresh = np.empty(nbytes, np.uint8)
    known[use] = [fresh, *pieces[: _EACH - 1]]
    return fresh[:nbytes]
