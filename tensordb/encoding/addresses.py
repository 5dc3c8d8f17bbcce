"""Where bytes are in memory, for compiled code that is handed many scattered pieces at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def address_of(data: NDArray[np.uint8]) -> int:
    """Return the address of an array's first byte."""
    address: int = data.__array_interface__["data"][0]
    return address


_PROBE = b"where do the bytes of a bytes object begin?"
_HEADER = address_of(np.frombuffer(_PROBE, np.uint8)) - id(_PROBE)
_HAS_HEADER = bytes.__basicsize__ - 1 == _HEADER


def address_of_bytes(data: Any) -> int:
    """Return the address of an object's first byte; of a bytes object without the cost of an array."""
    if _HAS_HEADER and type(data) is bytes:  # CPython keeps the bytes right behind the object's header
        return id(data) + _HEADER
    return address_of(np.frombuffer(data, np.uint8))
