"""Compiled inner loops, when numba is there; every one has a NumPy equivalent that gives the same bytes.

Importing numba and its compiled code takes as long as NumPy needs for a few hundred megabytes. So NumPy does the work
until that much has been asked for; a thread then loads the kernels beside it, and they take over when they are ready.
The first time that takes some seconds, for which the end of the program, or a fork, waits. What numba compiled it keeps
beside the package or in the user's cache directory, in files of its own that it unpickles: code, not data.

Each module is loaded by itself, when what it is for is asked for.
"""

from __future__ import annotations

from typing import Any

from tensordb.encoding.kernels.loading import Loader

__all__ = ["load", "ready", "ready_to_scale", "ready_to_spread", "ready_to_sum", "sparse"]

_planes = Loader("compiled")
_sparse = Loader("bitmaps")
_scaling = Loader("scaling")
_summing = Loader("summing")
_spreading = Loader("spreading")


def ready(nbytes: int) -> Any:
    """Return the loops of float planes, or None for NumPy to do this work of `nbytes` bytes; never waits for them."""
    return _planes.ready(nbytes)


def sparse(nbytes: int) -> Any:
    """Return the loops of bitmaps and differences, or None, in the same way."""
    return _sparse.ready(nbytes)


def ready_to_scale(nbytes: int) -> Any:
    """Return the loops of quantizers, or None, in the same way."""
    return _scaling.ready(nbytes)


def ready_to_sum(nbytes: int) -> Any:
    """Return the loops of statistics, or None, in the same way."""
    return _summing.ready(nbytes)


def ready_to_spread(nbytes: int) -> Any:
    """Return the loops that put records where they belong, or None, in the same way."""
    return _spreading.ready(nbytes)


def load() -> bool:
    """Load all kernels now; return whether they can be used.

    The first time on a machine they are compiled, which takes some seconds; the result is kept beside the package, or
    in the user's cache directory.
    """
    loaders = (_planes, _sparse, _scaling, _summing, _spreading)
    for loader in loaders:
        loader.begin()
    return all(loader.load() for loader in loaders)
