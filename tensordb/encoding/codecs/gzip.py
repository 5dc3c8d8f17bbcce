"""Codec ``gzip``: gzip members (RFC 1952), without a time stamp, so that equal bytes compress equally."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tensordb.encoding.codecs.base import Buffer, Codec, check_level, expect_length
from tensordb.encoding.codecs.deflate import deflate, inflate

_WINDOW_BITS = zlib.MAX_WBITS + 16


@dataclass(frozen=True, slots=True)
class Gzip(Codec):
    """DEFLATE in the gzip wrapper.

    Attributes:
        level: 1 (fastest) to 9 (smallest).
    """

    id: ClassVar[int] = 3
    name: ClassVar[str] = "gzip"
    level: int = 6

    def __post_init__(self) -> None:
        check_level(self.name, self.level, 1, 9)

    def compress(self, data: Buffer) -> bytes:
        """Return one gzip stream."""
        return deflate(data, self.level, _WINDOW_BITS)

    def decompress(self, data: Buffer, size: int) -> bytes:
        """Return the content of one gzip stream."""
        return inflate(self.name, data, size, _WINDOW_BITS)

    def parameters(self) -> dict[str, Any]:
        """Return the level."""
        return {"level": self.level}

    def pack(self) -> bytes:
        """Return the level as a byte."""
        return bytes((self.level,))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Return the codec that `pack` describes."""
        return cls(*expect_length(cls.name, data, 1))
