"""How kernels are compiled: for exact types, at import, without the GIL, and kept for the next time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit, types


def compiled(function: Callable[..., Any], *arguments: Any, returns: Any = types.void) -> Any:
    """Return `function` compiled for these argument types, or as it was compiled before."""
    signature = returns(*arguments)
    try:
        return njit(signature, nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written to
        return njit(signature, nogil=True)(function)
