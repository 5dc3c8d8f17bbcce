"""Filter ``stride_delta``: each byte as its difference from the one some bytes before it, as in images.

In an image ``[height, width, channels]`` of uint8 the stride of the channels reaches the pixel to the left, that of a
row the one above. Taking both differences in turn predicts a pixel as left + above - the one between them. Differences
wrap around, and begin anew in each chunk or record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding import kernels
from tensordb.encoding.filters.base import Addresses, Bytes, Filter
from tensordb.encoding.filters.words import word_bytes
from tensordb.errors import UnsupportedFormatError

MAX_STRIDE = (1 << 32) - 1
"""What a payload has room for; no chunk is so long."""
_MOST = 2
_FEW = 64
"""From so many on a stride is added at once; below it each of its columns is summed up by itself."""


@dataclass(frozen=True, slots=True)
class StrideDelta(Filter):
    """Differences of bytes.

    Attributes:
        strides: In bytes, each at least 1; a difference is taken for each in turn.
    """

    id: ClassVar[int] = 5
    name: ClassVar[str] = "stride_delta"
    spreads: ClassVar[bool] = True
    strides: tuple[int, ...]

    @property
    def by_record(self) -> bool:
        """Each record begins anew."""
        return True

    def shares(self, nbytes: int) -> list[int]:
        """Return all bytes."""
        return [nbytes]

    def split(self, data: Bytes, records: int) -> list[Bytes]:
        """Take the differences."""
        rows = data.reshape(records, -1)
        for stride in self.strides:
            differences = rows.copy()
            differences[:, stride:] -= rows[:, :-stride]
            rows = differences
        return [rows.reshape(-1)]

    def merge(self, groups: Sequence[Bytes], records: int, out: Bytes) -> None:
        """Sum them up."""
        out[:] = groups[0]
        rows = out.reshape(records, -1)
        loops = kernels.sparse(out.nbytes)
        for stride in reversed(self.strides):
            if loops is not None:
                loops.accumulate(out, rows.shape[1], stride)
            else:
                _accumulate(rows, stride)

    def spread(
        self, loops: Any, contents: Addresses, within: NDArray[np.int64], record_bytes: int, targets: Addresses
    ) -> None:
        """Sum them up where they belong."""
        sources = contents[:, 0] + (within * record_bytes).astype(np.uint64)
        loops.total(sources, targets, record_bytes, np.array(self.strides, np.int64))

    def pack(self) -> bytes:
        """Return 4 bytes for each stride."""
        return b"".join(stride.to_bytes(4, "little") for stride in self.strides)

    @classmethod
    def unpack(cls, data: bytes, dtype: str) -> Self:
        """Return the filter with these strides."""
        strides = tuple(int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4))
        if len(data) % 4 or not 1 <= len(strides) <= _MOST or 0 in strides or word_bytes(dtype) != 1:
            raise UnsupportedFormatError(
                f"strides {strides} cannot be those of {dtype}; read the payload with a newer release"
            )
        return cls(strides)


def _accumulate(rows: Bytes, stride: int) -> None:
    """Add to each byte of a row the one a stride before it, front to back."""
    size = rows.shape[1]
    if stride < _FEW:
        for column in range(min(stride, size)):
            lane = rows[:, column::stride]
            np.add.accumulate(lane, axis=1, out=lane)
        return
    for begin in range(stride, size, stride):
        end = min(begin + stride, size)
        rows[:, begin:end] += rows[:, begin - stride : end - stride]
