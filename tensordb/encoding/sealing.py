"""Noticing that others change a tensor while it is hashed and encoded, when its content id would name other bytes.

Equal tensors share what is stored under a content id, so a wrong one would damage what others store later.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xxhash
from numpy.typing import NDArray

from tensordb.encoding.workers import for_each
from tensordb.errors import ConflictError

_PIECE = 1 << 20


class Seal:
    """Checksums of a tensor's bytes, taken while they are hashed."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        """Take the bytes of a contiguous tensor, which it may alias."""
        self._data = data
        self._sums: list[int] = []

    def pieces(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the bytes piece by piece, each to be hashed at once."""
        for begin in range(0, self._data.nbytes, _PIECE):
            part = self._data[begin : begin + _PIECE]
            self._sums.append(xxhash.xxh3_64_intdigest(part.data))
            yield part

    def check(self) -> None:
        """Raise ConflictError when the bytes are not those that were hashed."""
        for_each(len(self._sums), self._check)

    def _check(self, index: int) -> None:
        part = self._data[index * _PIECE : (index + 1) * _PIECE]
        if xxhash.xxh3_64_intdigest(part.data) != self._sums[index]:
            raise ConflictError(
                "the tensor was changed by others while it was stored, so nothing was; store a clone, or have them wait"
            )
