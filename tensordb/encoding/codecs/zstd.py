"""Codec ``zstd``: standard Zstandard frames that any decoder reads, on the CPU or a GPU.

A frame states its content size and has no dictionary and no checksum of its own; its window is at most its content.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import zstandard
from numpy.typing import NDArray

from tensordb.encoding.addresses import address_of_bytes
from tensordb.encoding.codecs.base import Buffer, Codec, check_level, damaged, expect_length
from tensordb.errors import InvalidInputError

_STRATEGIES = ("default", "huffman")
_MANY_PIECES = 8
"""Pieces from which on a call for all of them is faster; for each such call the library makes a context."""
_REPEATS = 4
# Contexts hold hundreds of KB and are not thread-safe: each thread makes its own and keeps it.
_thread = threading.local()


@dataclass(frozen=True, slots=True)
class Zstd(Codec):
    """Zstandard.

    Attributes:
        level: 1 (fastest) to 22 (smallest).
        strategy: ``"huffman"`` looks for almost no repetitions and mostly entropy-codes single bytes, at 2 to 3 times
            the speed; right for the exponents of noise-like floats. The level is then used only for pieces that shrink
            to less than a quarter, which repeat more than single bytes tell.
    """

    id: ClassVar[int] = 1
    name: ClassVar[str] = "zstd"
    level: int = 3
    strategy: Literal["default", "huffman"] = "default"

    def __post_init__(self) -> None:
        check_level(self.name, self.level, 1, 22)
        if self.strategy not in _STRATEGIES:
            raise InvalidInputError(f"zstd has no strategy {self.strategy!r}; use one of: {', '.join(_STRATEGIES)}")

    def compress(self, data: Buffer) -> bytes:
        """Return one zstd frame."""
        frame = _compressor(self.level, self.strategy).compress(data)
        return self._smaller(frame, data) if self.strategy == "huffman" and len(frame) * _REPEATS < len(data) else frame

    def compress_pieces(self, data: Buffer, size: int) -> Sequence[Buffer]:
        """Return a zstd frame for each piece, made in one go without the GIL when there are many."""
        if -(-len(data) // size) < _MANY_PIECES:
            return Codec.compress_pieces(self, data, size)
        found: list[Buffer] = self._segments(data, size)
        if self.strategy == "huffman":
            view = memoryview(data)
            for index, frame in enumerate(found):
                if len(frame) * _REPEATS < size:
                    found[index] = self._smaller(frame, view[index * size : (index + 1) * size])
        return found

    def compress_frames(self, data: Buffer, size: int) -> tuple[Any, NDArray[np.uint64], NDArray[np.int64]]:
        """Do the same without a look at each frame."""
        if -(-len(data) // size) < _MANY_PIECES:
            return Codec.compress_frames(self, data, size)
        segments = self._segments(data, size)
        places, lengths = _addresses(segments), np.array([len(segment) for segment in segments], np.int64)
        kept: list[Buffer] = list(segments)
        if self.strategy == "huffman":
            view = memoryview(data)
            for index in np.flatnonzero(lengths * _REPEATS < size).tolist():
                kept[index] = frame = self._smaller(kept[index], view[index * size : (index + 1) * size])
                places[index], lengths[index] = address_of_bytes(frame), len(frame)
        return (segments, kept), places, lengths

    def _segments(self, data: Buffer, size: int) -> list[zstandard.BufferSegment]:
        """Return a zstd frame for each piece."""
        count = -(-len(data) // size)
        spans = np.empty((count, 2), np.uint64)
        spans[:, 0] = np.arange(count) * size
        spans[:, 1] = size
        spans[-1, 1] = len(data) - (count - 1) * size
        pieces = zstandard.BufferWithSegments(data, spans.tobytes())
        frames = _compressor(self.level, self.strategy).multi_compress_to_buffer(pieces, threads=1)
        return [frames[index] for index in range(count)]

    def _smaller(self, frame: Buffer, data: Buffer) -> Any:
        """Return `frame`, or one that looks for repetitions when that is smaller."""
        other = _compressor(self.level, "default").compress(data)
        return other if len(other) < len(frame) else frame

    def decompress(self, data: Buffer, size: int) -> bytes:
        """Return the content of one zstd frame that states its content size."""
        try:
            # The library allocates what the frame claims, so the claim is checked first.
            claimed = zstandard.frame_content_size(data)
            if claimed != size:
                raise damaged(self.name, ValueError(f"it claims {claimed} bytes where {size} were written"))
            return _decompressor().decompress(data, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise damaged(self.name, error) from error

    def decompress_frames(
        self, frames: Sequence[memoryview], sizes: NDArray[np.uint64]
    ) -> tuple[Any, NDArray[np.uint64]]:
        """Return the originals, made in one go without the GIL when there are many."""
        if len(frames) < _MANY_PIECES:
            return Codec.decompress_frames(self, frames, sizes)
        try:
            found = _decompressor().multi_decompress_to_buffer([*frames], decompressed_sizes=sizes.tobytes(), threads=1)
        except zstandard.ZstdError as error:
            raise damaged(self.name, error) from error
        return found, _addresses([found[index] for index in range(len(frames))])

    def parameters(self) -> dict[str, Any]:
        """Return level, or the strategy that replaces it."""
        return {"level": self.level} if self.strategy == "default" else {"strategy": self.strategy}

    def pack(self) -> bytes:
        """Return level and strategy, a byte each."""
        return bytes((self.level, _STRATEGIES.index(self.strategy)))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Return the codec that `pack` describes."""
        level, strategy = expect_length(cls.name, data, 2)
        return cls(level, "huffman" if strategy == 1 else "default")


def _addresses(segments: list[zstandard.BufferSegment]) -> NDArray[np.uint64]:
    """Return where segments begin, which lie in a few buffers; that of each is asked for once."""
    offsets = np.array([segment.offset for segment in segments], np.uint64)
    heads = np.flatnonzero(offsets == 0)
    buffers = np.array([address_of_bytes(segments[head]) for head in heads.tolist()], np.uint64)
    return np.repeat(buffers, np.diff(heads, append=len(segments))) + offsets


def _compressor(level: int, strategy: str) -> zstandard.ZstdCompressor:
    known: dict[tuple[int, str], zstandard.ZstdCompressor] | None = getattr(_thread, "compressors", None)
    if known is None:
        known = _thread.compressors = {}
    compressor = known.get((level, strategy))
    if compressor is None:
        compressor = known[level, strategy] = _new_compressor(level, strategy)
    return compressor


def _new_compressor(level: int, strategy: str) -> zstandard.ZstdCompressor:
    if strategy == "default":
        return zstandard.ZstdCompressor(level=level, write_checksum=False, write_content_size=True)
    huffman = zstandard.ZstdCompressionParameters(
        strategy=zstandard.STRATEGY_FAST,
        min_match=7,
        hash_log=6,
        target_length=0,
        chain_log=6,
        search_log=1,
        window_log=17,
        write_content_size=True,
        write_checksum=False,
    )
    return zstandard.ZstdCompressor(compression_params=huffman)


def _decompressor() -> zstandard.ZstdDecompressor:
    decompressor: zstandard.ZstdDecompressor | None = getattr(_thread, "decompressor", None)
    if decompressor is None:
        decompressor = _thread.decompressor = zstandard.ZstdDecompressor()
    return decompressor
