"""Frames: the stored pieces of a payload, each with its own checksum, and the table that finds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from tensordb.encoding.codecs import Codec
from tensordb.encoding.format import ALIGNMENT, Header
from tensordb.errors import FormatError, IntegrityError

RAW, COMPRESSED, CONSTANT = 0, 1, 2
_LENGTH_BITS = 30
_LENGTH_MASK = (1 << _LENGTH_BITS) - 1

Bytes = NDArray[np.uint8]


@dataclass(slots=True)
class FrameList:
    """Frames while they are written: table words, checksums, and stored bytes padded to the alignment."""

    words: list[int] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=list)
    nbytes: int = 0
    padding: int = 0

    def add(self, kind: int, data: Any) -> None:
        """Append a raw or compressed frame."""
        size = memoryview(data).nbytes
        self.words.append(kind << _LENGTH_BITS | size)
        self.checksums.append(xxh3_64_intdigest(data))
        self.buffers.append(data)
        self.padding = -size % ALIGNMENT
        if self.padding:
            self.buffers.append(bytes(self.padding))
        self.nbytes += size + self.padding

    def add_constant(self, value: int) -> None:
        """Append a frame of one repeated byte, which is kept in the table."""
        self.words.append(CONSTANT << _LENGTH_BITS | value)
        self.checksums.append(0)
        self.padding = 0

    def add_piece(self, piece: Bytes, codec: Codec | None, keep_below: float) -> None:
        """Append `piece` in the smallest form: constant, compressed if that is below a share of its size, or raw."""
        if codec is not None and piece[0] == piece[-1] and _is_constant(piece):
            self.add_constant(int(piece[0]))
            return
        compressed = codec.compress(piece) if codec is not None and keep_below > 0 else None
        if compressed is not None and len(compressed) < keep_below * piece.nbytes:
            self.add(COMPRESSED, compressed)
        else:
            self.add(RAW, piece)

    def extend(self, other: FrameList) -> None:
        """Append the frames of another list, its bytes as they are."""
        self.words += other.words
        self.checksums += other.checksums
        self.buffers += other.buffers
        self.nbytes += other.nbytes
        self.padding = other.padding

    def joined(self) -> FrameList:
        """Return the same frames with their bytes in one buffer."""
        return FrameList(self.words, self.checksums, [b"".join(self.buffers)], self.nbytes, self.padding)

    def finish(self) -> None:
        """Take the padding after the last frame away; nothing follows it."""
        if self.padding:
            self.buffers[-1] = memoryview(self.buffers[-1])[: -self.padding]
            self.nbytes -= self.padding
            self.padding = 0


def _is_constant(piece: Bytes) -> bool:
    return bool((piece[:64] == piece[0]).all() and (piece == piece[0]).all())


class FrameTable:
    """The frames of a payload, found and verified one by one. Immutable.

    Every length is checked against what the frame must decode to before anything is read, and the payload must end
    where its last frame ends.
    """

    def __init__(self, payload: memoryview, header: Header, sizes: NDArray[np.int64]) -> None:
        if len(header.words) != len(sizes):
            raise FormatError(
                f"frame table has {len(header.words)} entries where the tensor has {len(sizes)} frames; it is forged"
            )
        kinds = (header.words >> _LENGTH_BITS).astype(np.int64)
        values = (header.words & _LENGTH_MASK).astype(np.int64)
        _check_entries(kinds, values, sizes)
        stored = np.where(kinds == CONSTANT, 0, values)
        ends = header.end + np.cumsum(-(-stored // ALIGNMENT) * ALIGNMENT)
        starts = np.concatenate(([header.end], ends[:-1])) if len(ends) else ends
        end = int(starts[-1] + stored[-1]) if len(starts) else header.end
        if end != len(payload):
            raise IntegrityError(
                f"payload has {len(payload)} bytes where {end} were written; restore the payload from a copy"
            )
        self._payload = payload
        self._first = header.end
        self.kinds: list[int] = kinds.tolist()
        self.values: list[int] = values.tolist()
        self.sizes: list[int] = sizes.tolist()
        self.starts: list[int] = starts.tolist()
        self._ends: list[int] = (starts + stored).tolist()
        self._checksums: list[int] = header.checksums.tolist()

    def __len__(self) -> int:
        return len(self.kinds)

    def verified(self, index: int) -> memoryview:
        """Return the stored bytes of a frame once its checksum holds.

        Raises:
            IntegrityError: if it does not.
        """
        data = self._payload[self.starts[index] : self._ends[index]]
        if xxh3_64_intdigest(data) != self._checksums[index] and self.kinds[index] != CONSTANT:
            raise IntegrityError(
                f"frame {index} at byte {self.starts[index]} does not match its checksum; "
                "restore the payload from a copy"
            )
        return data

    def content(self, index: int, codec: Codec) -> Any:
        """Return the decoded bytes of a frame; those of a raw one alias the payload."""
        data = self.verified(index)
        kind = self.kinds[index]
        if kind == RAW:
            return data
        if kind == COMPRESSED:
            return codec.decompress(data, self.sizes[index])
        return bytes((self.values[index],)) * self.sizes[index]

    def contents(self, first: int, count: int, codec: Codec) -> list[Any]:
        """Return the decoded bytes of `count` frames from `first` on."""
        return [self.content(index, codec) for index in range(first, first + count)]

    def raw_span(self, first: int, last: int) -> tuple[int, int] | None:
        """Return the byte range of frames `first` to `last` (exclusive) if they are raw and lie without gaps."""
        if first == last:
            return self._first, self._first
        whole = all(kind == RAW for kind in self.kinds[first:last])
        gapless = self._ends[last - 1] - self.starts[first] == sum(self.sizes[first:last])
        return (self.starts[first], self._ends[last - 1]) if whole and gapless else None

    def check_padding(self) -> None:
        """Raise IntegrityError if a byte between two frames is not zero."""
        for end, start in zip(self._ends, self.starts[1:], strict=False):
            if any(self._payload[end:start]):
                raise IntegrityError(f"padding at byte {end} is not zero; restore the payload from a copy")


def _check_entries(kinds: NDArray[np.int64], values: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
    possible = np.select(
        [kinds == RAW, kinds == COMPRESSED, kinds == CONSTANT],
        [values == sizes, (values > 0) & (values < sizes), values < 256],
        default=False,
    )
    if not possible.all():
        raise FormatError(f"frame table entry {int(possible.argmin())} is impossible; the payload is forged")
