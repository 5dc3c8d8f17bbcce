"""Codec ``lzma``: XZ containers with one LZMA2 stream, without a checksum of their own."""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tensordb.encoding.codecs.base import Buffer, Codec, check_level, check_size, damaged, expect_length

_LARGEST_DICTIONARY = 1 << 26
_DECODER_LIMIT = (1 << 26) + (1 << 20)


@dataclass(frozen=True, slots=True)
class Lzma(Codec):
    """LZMA: the slowest and often the smallest.

    Attributes:
        level: 0 (fastest) to 9 (smallest).
    """

    id: ClassVar[int] = 5
    name: ClassVar[str] = "lzma"
    level: int = 6

    def __post_init__(self) -> None:
        check_level(self.name, self.level, 0, 9)

    def compress(self, data: Buffer) -> bytes:
        """Return one XZ container."""
        # A dictionary larger than the data saves nothing and would cost every reader its memory.
        size = min(_LARGEST_DICTIONARY, max(4096, 1 << memoryview(data).nbytes.bit_length()))
        filters = [{"id": lzma.FILTER_LZMA2, "preset": self.level, "dict_size": size}]
        return lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_NONE, filters=filters)

    def decompress(self, data: Buffer, size: int) -> bytes:
        """Return the content of one XZ container."""
        stream = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_DECODER_LIMIT)
        try:
            content = stream.decompress(data, max_length=size)
            # The end mark may come only after the last byte of content.
            content += b"" if stream.eof else stream.decompress(b"", max_length=1)
        except (lzma.LZMAError, EOFError) as error:
            raise damaged(self.name, error) from error
        if len(content) == size and (not stream.eof or stream.unused_data):
            raise damaged(self.name, ValueError("it does not end where its content ends"))
        return check_size(self.name, content, size)

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
