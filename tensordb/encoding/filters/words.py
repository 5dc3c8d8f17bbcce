"""The words that filters take codes apart into: unsigned integers with the bits of the elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from tensordb.tensors import dtype_from_name

WORDS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
"""NumPy's type of a word by its bytes."""

_HALVES = ("complex32", "complex64", "complex128")


def word_bytes(dtype: str) -> int:
    """Return the bytes of a word of this dtype: those of an element, of a complex one those of each part."""
    itemsize: int = dtype_from_name(dtype).itemsize
    return itemsize // 2 if dtype in _HALVES else itemsize


def is_integer(dtype: str) -> bool:
    """Tell whether the elements are integers, which bool is not."""
    return dtype.startswith(("int", "uint"))
