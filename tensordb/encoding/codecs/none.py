"""Codec ``none``: bytes as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tensordb.encoding.codecs.base import Buffer, Codec, check_size, expect_length


@dataclass(frozen=True, slots=True)
class NoCodec(Codec):
    """Stores bytes unchanged."""

    id: ClassVar[int] = 0
    name: ClassVar[str] = "none"

    def compress(self, data: Buffer) -> bytes:
        """Return `data` as bytes."""
        return bytes(data)

    def decompress(self, data: Buffer, size: int) -> bytes:
        """Return `data` as bytes, which must be `size` of them."""
        return check_size(self.name, bytes(data), size)

    def parameters(self) -> dict[str, Any]:
        """Return no parameters."""
        return {}

    def pack(self) -> bytes:
        """Return no bytes."""
        return b""

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Return the codec."""
        expect_length(cls.name, data, 0)
        return cls()
