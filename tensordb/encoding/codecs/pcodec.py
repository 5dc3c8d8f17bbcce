"""Codec ``pcodec``: numbers binned by value and coded with ANS, smaller and far slower than zstd on float planes.

Unlike the other codecs it sees numbers, not bytes. The package `pcodec` is optional: the extra ``tensordb[archive]``.
The format is described in Loncaric et al., "Pcodec: Better Compression for Numerical Sequences" (arXiv 2502.06112).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding.codecs.base import Buffer, Codec, check_level, damaged, expect_length
from tensordb.errors import InvalidInputError, MissingCodecError, MissingDependencyError, UnsupportedFormatError

try:
    from pcodec import ChunkConfig, PagingSpec, wrapped
except ImportError:
    wrapped = None

_NUMBERS = (
    "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64",
)  # fmt: skip
"""Stored by their position: append only."""
_SHORT = {name: f"{name[0]}{''.join(filter(str.isdigit, name))}" for name in _NUMBERS}
_COUNT = 4
"""Bytes before it that say how many numbers there are, which the wrapped format leaves to us."""
_MOST = 1 << 24
"""Numbers that pcodec takes at a time."""


def installed() -> bool:
    """Tell whether the optional package is there."""
    return wrapped is not None


@dataclass(frozen=True, slots=True)
class Pcodec(Codec):
    """Pcodec.

    Attributes:
        level: 0 (fastest) to 12 (smallest, 5 to 30 MB/s).
        number: What the bytes are: ``"uint8"`` to ``"uint64"``, ``"int8"`` to ``"int64"``, ``"float16"`` to
            ``"float64"``. Float bits come back as they were, NaN included.
    """

    id: ClassVar[int] = 6
    name: ClassVar[str] = "pcodec"
    level: int = 12
    number: Literal[
        "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"
    ] = "uint8"

    def __post_init__(self) -> None:
        check_level(self.name, self.level, 0, 12)
        if self.number not in _NUMBERS:
            raise InvalidInputError(f"pcodec has no number {self.number!r}; use one of: {', '.join(_NUMBERS)}")

    def compress(self, data: Buffer) -> bytes:
        """Return `data` in pcodec's wrapped format.

        Raises:
            MissingDependencyError: if pcodec is not installed.
            InvalidInputError: if `data` is not a whole number of numbers.
        """
        _require()
        if memoryview(data).nbytes % np.dtype(self.number).itemsize:
            raise InvalidInputError(
                f"{memoryview(data).nbytes} bytes are no whole {self.number}s; choose another number"
            )
        # pcodec refuses numbers that are not aligned, such as those of a tensor over any part of a file.
        numbers = np.require(np.frombuffer(data, self.number), requirements="A")
        file = wrapped.FileCompressor()
        parts = [len(numbers).to_bytes(_COUNT, "little"), file.write_header()]
        for begin in range(0, len(numbers), _MOST):
            run = numbers[begin : begin + _MOST]
            paging = PagingSpec.exact_page_sizes([len(run)])
            config = ChunkConfig(compression_level=self.level, enable_8_bit=True, paging_spec=paging)
            chunk = file.chunk_compressor(run, config)
            parts += [chunk.write_meta(), chunk.write_page(0)]
        return b"".join(parts)

    def decompress(self, data: Buffer, size: int) -> bytes:
        """Return the numbers in pcodec's wrapped format as bytes.

        Raises:
            MissingCodecError: if pcodec is not installed.
        """
        _require(MissingCodecError)
        count, rest = divmod(size, np.dtype(self.number).itemsize)
        numbers = np.empty(count, self.number)
        try:
            known = int.from_bytes(data[:_COUNT], "little") == count and not rest
            left = _fill(numbers, bytes(data[_COUNT:]), _SHORT[self.number]) if known else 1
        except RuntimeError as error:
            raise damaged(self.name, error) from error
        if left:
            raise damaged(self.name, ValueError(f"it does not hold exactly {size} bytes"))
        return numbers.tobytes()

    def parameters(self) -> dict[str, Any]:
        """Return level and number."""
        return {"level": self.level, "number": self.number}

    def pack(self) -> bytes:
        """Return level and number, a byte each."""
        return bytes((self.level, _NUMBERS.index(self.number)))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Return the codec that `pack` describes."""
        level, number = expect_length(cls.name, data, 2)
        if number >= len(_NUMBERS):
            raise UnsupportedFormatError(
                f"pcodec has the number {number}, unknown to this release; use a newer release"
            )
        return cls(level, _NUMBERS[number])  # type: ignore[arg-type]


def _fill(numbers: NDArray[Any], data: bytes, kind: str) -> int:
    """Fill `numbers` from `data` and return how many bytes were not needed."""
    file, at = wrapped.FileDecompressor.new(data)
    for begin in range(0, len(numbers), _MOST):
        run = numbers[begin : begin + _MOST]
        chunk, used = file.chunk_decompressor(data[at:], kind)
        at += used
        _, used = chunk.read_page_into(data[at:], len(run), run)
        at += used
    left: int = len(data) - at
    return left


def _require(missing: type[MissingDependencyError] = MissingDependencyError) -> None:
    if not installed():
        raise missing(
            "codec pcodec needs the package pcodec, which is not installed; run: pip install 'tensordb[archive]'"
        )
