"""Filter ``bit_pack``: elements of a byte that need only 1, 2 or 4 bits, such as bools and codes of int4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from tensordb.encoding.filters.base import Bytes, Filter
from tensordb.encoding.filters.words import word_bytes
from tensordb.errors import IntegrityError, UnsupportedFormatError


@dataclass(frozen=True, slots=True)
class BitPack(Filter):
    """Several elements in each byte, the first one in its lowest bits.

    Attributes:
        bits: Of an element: 1, 2 or 4.
    """

    id: ClassVar[int] = 3
    name: ClassVar[str] = "bit_pack"
    sliceable: ClassVar[bool] = False
    bits: int

    @classmethod
    def fitting(cls, data: Bytes) -> Self | None:
        """Return the narrowest packing that holds all elements of a byte, or None."""
        largest = int(data.max(initial=0))
        return cls(1 if largest < 2 else 2 if largest < 4 else 4) if largest < 16 else None

    def shares(self, nbytes: int) -> list[int]:
        """Return the bytes that hold so many elements."""
        return [-(-nbytes * self.bits // 8)]

    def split(self, data: Bytes, records: int) -> list[Bytes]:
        """Pack the elements."""
        if self.bits == 1:
            return [np.packbits(data, bitorder="little")]
        each = 8 // self.bits
        if spare := -len(data) % each:
            data = np.concatenate([data, np.zeros(spare, np.uint8)])
        columns = data.reshape(-1, each)
        packed = columns[:, 0].copy()
        for place in range(1, each):
            packed |= columns[:, place] << np.uint8(self.bits * place)
        return [packed]

    def merge(self, groups: Sequence[Bytes], records: int, out: Bytes) -> None:
        """Unpack them."""
        (packed,) = groups
        used = out.nbytes * self.bits % 8
        if used and packed[-1] >> used:
            raise IntegrityError("packed bits after the last element are not zero; the payload is forged")
        if self.bits == 1:
            out[:] = np.unpackbits(packed, count=out.nbytes, bitorder="little")
            return
        mask = np.uint8((1 << self.bits) - 1)
        for place in range(8 // self.bits):
            target = out[place :: 8 // self.bits]
            np.bitwise_and(packed[: len(target)] >> np.uint8(self.bits * place), mask, out=target)

    def pack(self) -> bytes:
        """Return the bits of an element, in a byte."""
        return bytes((self.bits,))

    @classmethod
    def unpack(cls, data: bytes, dtype: str) -> Self:
        """Return the filter with these bits."""
        if word_bytes(dtype) != 1 or len(data) != 1 or data[0] not in (1, 2, 4):
            raise UnsupportedFormatError(
                f"bits {tuple(data)} cannot hold {dtype}; read the payload with a newer release"
            )
        return cls(data[0])
