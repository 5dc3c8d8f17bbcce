"""What every codec is: a frozen configuration that turns bytes into fewer bytes and back.

A codec is its own configuration. Decompression never depends on the configuration, only on the compressed bytes and
the size that they must decompress to; it raises IntegrityError for anything else and allocates no more than that size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding.addresses import address_of_bytes
from tensordb.errors import IntegrityError, InvalidInputError, UnsupportedFormatError

Buffer = Any
"""Anything with the buffer protocol: bytes, memoryview, a contiguous NumPy array."""


class Codec(ABC):
    """Bytes to bytes. `id` is what a payload stores for it and never changes; `name` is what users write."""

    id: ClassVar[int]
    name: ClassVar[str]

    @abstractmethod
    def compress(self, data: Buffer) -> bytes:
        """Return `data` compressed."""

    def compress_pieces(self, data: Buffer, size: int) -> Sequence[Buffer]:
        """Return each piece of `size` bytes of `data` compressed by itself; the last piece may be shorter."""
        view = memoryview(data)
        return [self.compress(view[at : at + size]) for at in range(0, len(view), size)]

    def compress_frames(self, data: Buffer, size: int) -> tuple[Any, NDArray[np.uint64], NDArray[np.int64]]:
        """Do what `compress_pieces` does.

        Returns:
            What keeps the compressed pieces alive, where each begins in memory, and how many bytes it has.
        """
        pieces = self.compress_pieces(data, size)
        places = np.array([address_of_bytes(piece) for piece in pieces], np.uint64)
        return pieces, places, np.array([len(piece) for piece in pieces], np.int64)

    @abstractmethod
    def decompress(self, data: Buffer, size: int) -> bytes:
        """Return the original of `data`, which is exactly `size` bytes.

        Raises:
            IntegrityError: if `data` is damaged or is not `size` bytes once decompressed.
        """

    def decompress_frames(
        self, frames: Sequence[memoryview], sizes: NDArray[np.uint64]
    ) -> tuple[Any, NDArray[np.uint64]]:
        """Return the originals of many frames: what keeps them alive, and where each begins in memory.

        Args:
            frames: At least one.
            sizes: Bytes of each once decompressed.

        Raises:
            IntegrityError: As for `decompress`.
        """
        contents = [self.decompress(frame, size) for frame, size in zip(frames, sizes.tolist(), strict=True)]
        return contents, np.array([address_of_bytes(content) for content in contents], np.uint64)

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """Return the configuration as JSON values; ``type(self)(**parameters)`` rebuilds the codec."""

    @abstractmethod
    def pack(self) -> bytes:
        """Return the configuration as a payload stores it."""

    @classmethod
    @abstractmethod
    def unpack(cls, data: bytes) -> Self:
        """Return the codec whose `pack` gave `data`."""

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"name": …, "configuration": …}``, JSON-clean."""
        return {"name": self.name, "configuration": self.parameters()}


def check_level(codec: str, level: Any, lowest: int, highest: int, what: str = "level") -> None:
    """Raise InvalidInputError unless `level` is an int within the limits."""
    if isinstance(level, bool) or not isinstance(level, int) or not lowest <= level <= highest:
        raise InvalidInputError(f"{codec} has no {what} {level!r}; use an int from {lowest} to {highest}")


def check_size(codec: str, data: bytes, size: int) -> bytes:
    """Return `data` if it has `size` bytes, else raise IntegrityError."""
    if len(data) != size:
        raise IntegrityError(f"{codec} frame holds {len(data)} bytes where {size} were written; restore it from a copy")
    return data


def damaged(codec: str, reason: Exception) -> IntegrityError:
    """Return the error for a frame that its library cannot decompress."""
    return IntegrityError(f"{codec} frame cannot be decompressed ({reason}); restore it from a copy")


def expect_length(codec: str, data: bytes, length: int) -> bytes:
    """Return the packed parameters if they have the length of this version, else raise FormatError."""
    if len(data) != length:
        raise UnsupportedFormatError(
            f"{codec} has {len(data)} parameter bytes, this release knows {length}; "
            "read it with the release that wrote it"
        )
    return data
