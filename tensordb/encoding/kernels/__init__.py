"""Compiled inner loops, when numba is there; every one has a NumPy equivalent that gives the same bytes.

Importing numba and its compiled code takes as long as NumPy needs for a few hundred megabytes. So NumPy does the work
until that much has been asked for; a thread then loads the kernels beside it, and they take over when they are ready.
The first time that takes some seconds, for which the end of the program, or a fork, waits. What numba compiled it keeps
beside the package or in the user's cache directory, in files of its own that it unpickles: code, not data.
"""

from __future__ import annotations

from tensordb.encoding.kernels.loading import load, ready

__all__ = ["load", "ready"]
