"""Elements that a quantizer cannot keep within its promise: their positions, and their exact bits beside the codes.

They are few by rule, so that they cost little: at most one element in 64, and one where there are fewer than 64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensordb.errors import FormatError

WORDS: dict[int, Any] = {2: np.uint16, 4: np.uint32, 8: np.uint64}
"""Elements as their bits, by size."""


def most_exceptions(elements: int) -> int:
    """Return how many exceptions a tensor of this many elements may have."""
    return max(1, elements // 64)


def position_dtype(elements: int) -> type[np.uint32 | np.uint64]:
    """Return what positions in a tensor of this many elements are stored as."""
    return np.uint32 if elements <= 1 << 32 else np.uint64


@dataclass(frozen=True, slots=True, eq=False)
class Exceptions:
    """Elements stored exactly.

    Attributes:
        positions: Flat element numbers, ascending: ``uint32[n]``, or uint64 in a tensor of more than 2^32 elements.
        values: Bits of the elements, in unsigned words of their size: ``[n]``.
    """

    positions: NDArray[Any]
    values: NDArray[Any]

    def __len__(self) -> int:
        return len(self.positions)

    def put(self, out: NDArray[np.uint8], start: int, stop: int) -> None:
        """Put those of elements start to stop (exclusive) into `out`, which holds the bytes of these elements."""
        first, last = within(self.positions, start, stop)
        if first < last:
            places = self.positions[first:last].astype(np.int64) - start
            out.view(self.values.dtype)[places] = self.values[first:last]


def within(positions: NDArray[Any], start: int, stop: int) -> tuple[int, int]:
    """Return the range of ascending `positions` that lie in start to stop (exclusive)."""
    # Edges of another dtype would have all positions converted; the end of all can lie beyond what uint32 holds.
    first = int(np.searchsorted(positions, positions.dtype.type(start)))
    all_of_them = stop > np.iinfo(positions.dtype).max
    last = len(positions) if all_of_them else int(np.searchsorted(positions, positions.dtype.type(stop)))
    return first, last


def check_positions(positions: NDArray[Any], elements: int) -> None:
    """Raise FormatError unless positions ascend and lie in a tensor of this many elements."""
    ascending = bool((positions[1:] > positions[:-1]).all())
    if not ascending or int(positions[-1]) >= elements:
        raise FormatError("payload has exceptions out of order or out of the tensor; it is forged")
