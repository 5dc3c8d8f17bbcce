"""Codec ``lz4``: raw LZ4 blocks, without the frame format and without a stored size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import lz4.block

from tensordb.encoding.codecs.base import Buffer, Codec, check_level, check_size, damaged, expect_length
from tensordb.errors import InvalidInputError

_MODES = ("fast", "hc")


@dataclass(frozen=True, slots=True)
class Lz4(Codec):
    """LZ4.

    Attributes:
        mode: ``"fast"``, or ``"hc"`` (high compression: slower to compress, as fast to decompress).
        level: In fast mode the acceleration, 1 (smallest) to 64 (fastest); in hc mode 1 to 12 (smallest).
            Default 1 and 9.
    """

    id: ClassVar[int] = 2
    name: ClassVar[str] = "lz4"
    mode: Literal["fast", "hc"] = "fast"
    level: int = 0

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise InvalidInputError(f"lz4 has no mode {self.mode!r}; use one of: {', '.join(_MODES)}")
        if self.level == 0 and not isinstance(self.level, bool):
            object.__setattr__(self, "level", 1 if self.mode == "fast" else 9)
        check_level(f"lz4 {self.mode}", self.level, 1, 64 if self.mode == "fast" else 12)

    def compress(self, data: Buffer) -> bytes:
        """Return one LZ4 block."""
        if self.mode == "hc":
            block = lz4.block.compress(data, mode="high_compression", compression=self.level, store_size=False)
        else:
            block = lz4.block.compress(data, mode="fast", acceleration=self.level, store_size=False)
        return bytes(block)

    def decompress(self, data: Buffer, size: int) -> bytes:
        """Return the content of one LZ4 block."""
        try:
            return check_size(self.name, lz4.block.decompress(data, uncompressed_size=size), size)
        except lz4.block.LZ4BlockError as error:
            raise damaged(self.name, error) from error

    def parameters(self) -> dict[str, Any]:
        """Return mode and level."""
        return {"mode": self.mode, "level": self.level}

    def pack(self) -> bytes:
        """Return mode and level, a byte each."""
        return bytes((_MODES.index(self.mode), self.level))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Return the codec that `pack` describes."""
        mode, level = expect_length(cls.name, data, 2)
        return cls("hc" if mode == 1 else "fast", level)
