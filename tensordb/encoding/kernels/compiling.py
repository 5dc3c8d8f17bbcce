"""How kernels are compiled: for exact types, at import, without the GIL, and kept for the next time."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any

from numba import njit, types


def compiled(
    function: Callable[..., Any], *arguments: Any, returns: Any = types.void, fastmath: AbstractSet[str] = frozenset()
) -> Any:
    """Return `function` compiled for these argument types, or as it was compiled before.

    `fastmath` names the liberties that LLVM may take with floats.
    """
    signature = returns(*arguments)
    options = {"nogil": True, "fastmath": set(fastmath) or False}
    try:
        return njit(signature, cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written to
        return njit(signature, **options)(function)
