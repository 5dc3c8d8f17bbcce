"""Filter ``none``: one group with all bytes as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding.filters.base import Addresses, Bytes, Filter, Slices
from tensordb.errors import UnsupportedFormatError


@dataclass(frozen=True, slots=True)
class NoFilter(Filter):
    """Leaves bytes where they are."""

    id: ClassVar[int] = 0
    name: ClassVar[str] = "none"
    spreads: ClassVar[bool] = True

    def shares(self, nbytes: int) -> list[int]:
        """Return all bytes."""
        return [nbytes]

    def split(self, data: Bytes, records: int) -> list[Bytes]:
        """Return `data` itself."""
        return [data]

    def merge(self, groups: Sequence[Bytes], records: int, out: Bytes) -> None:
        """Copy the one group."""
        out[:] = groups[0]

    def gather(self, slices: Slices, out: Bytes) -> None:
        """Copy each record's share."""
        (size,) = slices.sizes
        for position, (chunk, number) in enumerate(zip(slices.which, slices.within, strict=True)):
            share = memoryview(slices.chunks[chunk][0])[number * size : (number + 1) * size]
            out[position * size : (position + 1) * size] = np.frombuffer(share, np.uint8)

    def spread(
        self, loops: Any, contents: Addresses, within: NDArray[np.int64], record_bytes: int, targets: Addresses
    ) -> None:
        """Copy them."""
        loops.copy(contents[:, 0] + (within * record_bytes).astype(np.uint64), targets, record_bytes)

    def pack(self) -> bytes:
        """Return no bytes."""
        return b""

    @classmethod
    def unpack(cls, data: bytes, dtype: str) -> Self:
        """Return the filter."""
        if data:
            raise UnsupportedFormatError(
                "filter none has parameters, which this release does not know; use a newer release"
            )
        return cls()
