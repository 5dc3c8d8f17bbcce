"""Compiled inner loops, when numba is there; every one has a NumPy equivalent that gives the same bytes.

Importing numba and its compiled code takes as long as NumPy needs for a few hundred megabytes. So NumPy does the work
until that much has been asked for; a thread then loads the kernels beside it, and they take over when they are ready.
"""

from __future__ import annotations

from tensordb.encoding.kernels.loading import Kernels, load, ready

__all__ = ["Kernels", "load", "ready"]
