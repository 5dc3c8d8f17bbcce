"""Filter ``constant``: a chunk whose elements are all the same keeps one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from tensordb.encoding.filters.base import Bytes, Filter
from tensordb.encoding.filters.words import WORDS
from tensordb.errors import UnsupportedFormatError
from tensordb.tensors import dtype_from_name


@dataclass(frozen=True, slots=True)
class Constant(Filter):
    """One element for each chunk.

    Attributes:
        itemsize: Bytes of an element.
    """

    id: ClassVar[int] = 2
    name: ClassVar[str] = "constant"
    sliceable: ClassVar[bool] = False
    itemsize: int

    @classmethod
    def fits(cls, data: Bytes, itemsize: int) -> bool:
        """Tell whether all elements of `data` have the same bytes."""
        if data.nbytes < 2 * itemsize or data[0] != data[-itemsize]:
            return False
        # An array compared with itself, an element further on: no word type is needed, whatever the itemsize.
        return bool(np.array_equal(data[itemsize:], data[:-itemsize]))

    def shares(self, nbytes: int) -> list[int]:
        """Return the bytes of an element."""
        return [self.itemsize]

    def split(self, data: Bytes, records: int) -> list[Bytes]:
        """Return the first element."""
        return [data[: self.itemsize]]

    def merge(self, groups: Sequence[Bytes], records: int, out: Bytes) -> None:
        """Repeat the element."""
        if self.itemsize in WORDS:
            out.view(WORDS[self.itemsize])[:] = groups[0].view(WORDS[self.itemsize])
        else:
            out.reshape(-1, self.itemsize)[:] = groups[0]

    def pack(self) -> bytes:
        """Return no bytes."""
        return b""

    @classmethod
    def unpack(cls, data: bytes, dtype: str) -> Self:
        """Return the filter for elements of this dtype."""
        if data:
            raise UnsupportedFormatError(
                "filter constant has parameters, which this release does not know; use a newer release"
            )
        return cls(dtype_from_name(dtype).itemsize)
