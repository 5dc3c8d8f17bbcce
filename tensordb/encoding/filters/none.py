"""Filter ``none``: one group with all bytes as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from tensordb.encoding.filters.base import Bytes, Filter
from tensordb.errors import FormatError


@dataclass(frozen=True, slots=True)
class NoFilter(Filter):
    """Leaves bytes where they are."""

    id: ClassVar[int] = 0
    name: ClassVar[str] = "none"

    @property
    def width(self) -> int:
        """One byte."""
        return 1

    @property
    def groups(self) -> tuple[int, ...]:
        """One group."""
        return (1,)

    def split(self, data: Bytes, records: int) -> list[Bytes]:
        """Return `data` itself."""
        return [data]

    def merge(self, groups: Sequence[Bytes], records: int, out: Bytes) -> None:
        """Copy the one group."""
        out[:] = groups[0]

    def pack(self) -> bytes:
        """Return no bytes."""
        return b""

    @classmethod
    def unpack(cls, data: bytes, width: int) -> Self:
        """Return the filter."""
        if data:
            raise FormatError("filter none has parameters, which this release does not know; use a newer release")
        return cls()
