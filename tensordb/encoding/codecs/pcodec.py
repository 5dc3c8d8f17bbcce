"""Codec ``pcodec``: numbers binned by value and coded with ANS, smaller and far slower than zstd on float planes.

Unlike the other codecs it sees numbers, not bytes. The package `pcodec` is optional: the extra ``tensordb[archive]``.
The format is described in Loncaric et al., "Pcodec: Better Compression for Numerical Sequences" (arXiv 2502.06112).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np

from tensordb.encoding.codecs.base import Buffer, Codec, check_level, damaged, expect_length
from tensordb.errors import FormatError, InvalidInputError, MissingDependencyError

try:
    from pcodec import ChunkConfig, standalone
except ImportError:
    standalone = None

_NUMBERS = (
    "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64",
)  # fmt: skip
"""Stored by their position: append only."""


def installed() -> bool:
    """Tell whether the optional package is there."""
    return standalone is not None


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
        """Return a standalone pcodec file.

        Raises:
            MissingDependencyError: if pcodec is not installed.
            InvalidInputError: if `data` is not a whole number of numbers.
        """
        _require()
        if memoryview(data).nbytes % np.dtype(self.number).itemsize:
            raise InvalidInputError(
                f"{memoryview(data).nbytes} bytes are no whole {self.number}s; choose another number"
            )
        config = ChunkConfig(compression_level=self.level, enable_8_bit=True)
        compressed: bytes = standalone.simple_compress(np.frombuffer(data, self.number), config)
        return compressed

    def decompress(self, data: Buffer, size: int) -> bytes:
        """Return the numbers of a standalone pcodec file as bytes.

        Raises:
            MissingDependencyError: if pcodec is not installed.
        """
        _require()
        count, rest = divmod(size, np.dtype(self.number).itemsize)
        numbers = np.empty(count, self.number)
        try:
            progress = standalone.simple_decompress_into(bytes(data), numbers)
        except RuntimeError as error:
            raise damaged(self.name, error) from error
        if rest or progress.n_processed != count or not progress.finished:
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
            raise FormatError(f"pcodec has the number {number}, unknown to this release; use a newer release")
        return cls(level, _NUMBERS[number])  # type: ignore[arg-type]


def _require() -> None:
    if not installed():
        raise MissingDependencyError(
            "codec pcodec needs the package pcodec, which is not installed; run: pip install 'tensordb[archive]'"
        )
