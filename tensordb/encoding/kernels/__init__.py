"""Compiled inner loops, when numba is there; every one has a NumPy equivalent that gives the same bytes.

Importing numba and its compiled code takes as long as NumPy needs for a few hundred megabytes. So NumPy does the work
until that much has been asked for; a thread then loads the kernels beside it, and they take over when they are ready.
The first time that takes some seconds, for which the end of the program, or a fork, waits. What numba compiled it keeps
beside the package or in the user's cache directory, in files of its own that it unpickles: code, not data.
"""

from __future__ import annotations

from typing import Any

from tensordb.encoding.kernels.loading import load, ready, scaling_loops

__all__ = ["load", "ready", "ready_to_scale"]


def ready_to_scale(nbytes: int) -> Any:
    """Return the loops of quantizers, or None for NumPy to do this work of `nbytes` bytes; never waits for them."""
    return scaling_loops() if ready(nbytes) is not None else None
