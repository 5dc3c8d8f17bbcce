"""Frames: the stored pieces of a payload, each with its own checksum, and the table that finds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from tensordb.encoding.addresses import address_of, address_of_bytes
from tensordb.encoding.codecs import Codec
from tensordb.encoding.format import ALIGNMENT, Header, aligned
from tensordb.errors import FormatError, IntegrityError
from tensordb.forks import computed_once

RAW, COMPRESSED, CONSTANT = 0, 1, 2
LENGTH_BITS = 30
_LENGTH_MASK = (1 << LENGTH_BITS) - 1

_OF_NOTHING = xxh3_64_intdigest(b"")
PADDING = [bytes(size) for size in range(ALIGNMENT)]

Bytes = NDArray[np.uint8]
Piece = tuple[int, Any]
"""Kind and bytes of a frame; of a constant one the bytes that it stands for."""


@dataclass(slots=True)
class FrameList:
    """Frames while they are written: table words, checksums, and stored bytes padded to the alignment."""

    words: list[int] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=list)
    nbytes: int = 0
    padding: int = 0

    def add(self, pieces: Sequence[Piece]) -> None:
        """Append raw, compressed and constant frames; a constant one is kept in the table alone."""
        stored = [b"" if kind == CONSTANT else data for kind, data in pieces]
        sizes = [*map(len, stored)]
        self.words += [
            kind << LENGTH_BITS | (int(data[0]) if kind == CONSTANT else size)
            for (kind, data), size in zip(pieces, sizes, strict=True)
        ]
        digests = map(xxh3_64_intdigest, stored)
        self.checksums += [0 if kind == CONSTANT else digest for (kind, _), digest in zip(pieces, digests, strict=True)]
        for data, size in zip(stored, sizes, strict=True):
            padding = -size % ALIGNMENT
            if size:
                self.buffers.append(data)
            if padding:
                self.buffers.append(PADDING[padding])
            self.nbytes += size + padding
            self.padding = padding

    def extend(self, other: FrameList) -> None:
        """Append the frames of another list, its bytes as they are."""
        self.words += other.words
        self.checksums += other.checksums
        self.buffers += other.buffers
        self.nbytes += other.nbytes
        self.padding = other.padding

    def pass_on(self, write: Callable[[list[Any]], None]) -> None:
        """Hand over the bytes there are; padding that may yet turn out to be the last stays."""
        padding = [self.buffers.pop()] if self.padding else []
        if self.buffers:
            write(self.buffers)
        self.buffers = padding

    def finish(self) -> None:
        """Take the padding after the last frame away; nothing follows it."""
        if self.padding:
            self.buffers[-1] = memoryview(self.buffers[-1])[: -self.padding]
            self.nbytes -= self.padding
            self.padding = 0


def pieces_of(data: Bytes, size: int, codec: Codec | None, keep_below: float) -> list[Piece]:
    """Cut a group into pieces of `size` bytes, the last perhaps shorter, each in its smallest form.

    Args:
        data: The group.
        size: Of a piece.
        codec: What compresses; None to store raw.
        keep_below: The share of a piece's size below which its compressed form is kept; 0.0 not to try.

    Returns:
        The pieces in their order.
    """
    if not len(data):
        return [(RAW, b"")]
    if codec is not None and len(data) <= size and data[0] == data[-1] and is_constant(data):
        return [(CONSTANT, data)]
    view = memoryview(data)  # type: ignore[arg-type]  # an array is a buffer
    pieces: list[Piece] = [(RAW, view[at : at + size]) for at in range(0, len(view), size)]
    if codec is None:
        return pieces
    if keep_below > 0:
        for index, compressed in enumerate(codec.compress_pieces(data, size)):
            if len(compressed) < keep_below * len(pieces[index][1]):
                pieces[index] = (COMPRESSED, compressed)
    if len(pieces) == 1:
        return pieces
    # Pieces that begin and end with the same byte; the last one's end is looked at for itself.
    ends = np.append(data[size - 1 : (len(pieces) - 1) * size : size], data[-1:])
    for index in np.flatnonzero(data[::size] == ends).tolist():
        piece = data[index * size : (index + 1) * size]
        if is_constant(piece):
            pieces[index] = (CONSTANT, piece)
    return pieces


def is_constant(piece: Bytes) -> bool:
    """Tell whether all bytes of a piece are the same."""
    return bool((piece[:64] == piece[0]).all() and (piece == piece[0]).all())


def parts_of(word: int) -> tuple[int, int]:
    """Return the kind of frame that a word of the table stands for, and its length or value."""
    return word >> LENGTH_BITS, word & _LENGTH_MASK


class FrameTable:
    """The frames of a payload, found and verified one by one. Immutable, but for what `verify_once` notes.

    Every length is checked against what the frame must decode to before anything is read, and the payload must end
    where its last frame ends.
    """

    def __init__(self, payload: memoryview, header: Header, sizes: Sequence[int], loose: int = 0) -> None:
        """Take a payload with its header.

        Args:
            payload: All of it.
            header: Verified.
            sizes: Decoded bytes of each frame.
            loose: Of so many frames, the first ones, `sizes` says only how large they can be.

        Raises:
            FormatError: if the table is impossible.
            IntegrityError: if the payload does not end where its last frame does.
        """
        if len(header.words) != len(sizes):
            raise FormatError(
                f"frame table has {len(header.words)} entries where the tensor has {len(sizes)} frames; it is forged"
            )
        # Most tables are short: plain numbers are read faster than arrays are made.
        self.sizes = sizes
        self.kinds = [word >> LENGTH_BITS for word in header.words]
        self.values = [word & _LENGTH_MASK for word in header.words]
        self.starts: list[int] = []
        self._ends: list[int] = []
        at = end = header.end
        for index, (kind, value, size) in enumerate(zip(self.kinds, self.values, sizes, strict=True)):
            _check_entry(index, kind, value, size, index < loose)
            end = at if kind == CONSTANT else at + value
            self.starts.append(at)
            self._ends.append(end)
            at = aligned(end)
        if end != len(payload):
            raise IntegrityError(
                f"payload has {len(payload)} bytes where {end} were written; restore the payload from a copy"
            )
        self._payload = payload
        self._address = address_of(np.frombuffer(payload, np.uint8))
        self._first = header.end
        self.trusted = False
        # A constant frame stores no bytes, and nothing in the place of a checksum.
        self._checksums = [
            _OF_NOTHING if kind == CONSTANT else checksum
            for kind, checksum in zip(self.kinds, header.checksums, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.kinds)

    def verified(self, index: int) -> memoryview:
        """Return the stored bytes of a frame once its checksum holds.

        Raises:
            IntegrityError: if it does not.
        """
        return self._verified((index,))[0]

    def stored(self, index: int) -> tuple[memoryview, int]:
        """Return the stored bytes of a frame, not verified, and their checksum."""
        return self._payload[self.starts[index] : self._ends[index]], self._checksums[index]

    def content(self, index: int, codec: Codec, size: int) -> Bytes:
        """Return the decoded bytes of a frame, which must be `size`; those of a raw one alias the payload.

        Raises:
            IntegrityError: if they are not, or do not match their checksum.
        """
        data = self.verified(index)
        if self.kinds[index] != RAW:
            return np.frombuffer(self._decoded(index, data, codec, size), np.uint8)
        if len(data) != size:
            raise IntegrityError(f"frame {index} has {len(data)} bytes where {size} must be; the payload is forged")
        return np.frombuffer(data, np.uint8)

    def contents(self, indices: Sequence[int], codec: Codec) -> list[Any]:
        """Return the decoded bytes of frames; those of raw ones alias the payload."""
        return [
            data if self.kinds[index] == RAW else self._decoded(index, data, codec, self.sizes[index])
            for index, data in zip(indices, self._verified(indices), strict=True)
        ]

    def addresses(self, indices: Sequence[int], contents: Sequence[Any]) -> list[int]:
        """Return where the `contents` of frames are in memory."""
        return [
            self._address + self.starts[index] if self.kinds[index] == RAW else address_of_bytes(content)
            for index, content in zip(indices, contents, strict=True)
        ]

    @computed_once
    def _arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.uint64], NDArray[np.uint64]]:
        """Kinds, places and decoded sizes of all frames."""
        return np.array(self.kinds, np.uint8), np.array(self.starts, np.uint64), np.array(self.sizes, np.uint64)

    def _verified(self, indices: Sequence[int]) -> list[memoryview]:
        # Random reads spend their time here: comprehensions, as a call for each frame would double it.
        stored = [self._payload[self.starts[index] : self._ends[index]] for index in indices]
        if self.trusted:
            return stored
        found, expected = [*map(xxh3_64_intdigest, stored)], [self._checksums[index] for index in indices]
        if found != expected:
            bad = next(index for index, a, b in zip(indices, found, expected, strict=True) if a != b)
            raise IntegrityError(
                f"frame {bad} at byte {self.starts[bad]} does not match its checksum; restore the payload from a copy"
            )
        return stored

    def _decoded(self, index: int, data: memoryview, codec: Codec, size: int) -> bytes:
        if self.kinds[index] == COMPRESSED:
            return codec.decompress(data, size)
        return bytes((self.values[index],)) * size

    def raw_span(self, first: int, last: int) -> tuple[int, int] | None:
        """Return the byte range of frames `first` to `last` (exclusive) if they are raw and lie without gaps."""
        if first == last:
            return self._first, self._first
        whole = all(kind == RAW for kind in self.kinds[first:last])
        gapless = self._ends[last - 1] - self.starts[first] == sum(self.sizes[first:last])
        return (self.starts[first], self._ends[last - 1]) if whole and gapless else None

    def verify_once(self) -> None:
        """Check every frame, and none of them again: for a payload in memory of its own.

        Raises:
            IntegrityError: if one does not match its checksum.
        """
        self._verified(range(len(self)))
        self.trusted = True

    def check_padding(self) -> None:
        """Raise IntegrityError if a byte between two frames is not zero."""
        for end, start in zip(self._ends, self.starts[1:], strict=False):
            if any(self._payload[end:start]):
                raise IntegrityError(f"padding at byte {end} is not zero; restore the payload from a copy")


def locate(requests: Sequence[tuple[FrameTable, NDArray[np.int64]]], codec: Codec) -> tuple[Any, NDArray[np.uint64]]:
    """Return the decoded bytes of many frames of many payloads: what keeps them alive, and where each is in memory.

    Raw ones lie in their payloads, which must be kept, too.

    Args:
        requests: For each payload numbers of its frames.
        codec: Of all of them.

    Raises:
        IntegrityError: if a frame does not match its checksum, or does not decode.
    """
    kept: list[Any] = []
    addresses: list[NDArray[np.uint64]] = []
    sizes: list[NDArray[np.uint64]] = []
    packed: list[memoryview] = []
    places: list[NDArray[np.int64]] = []
    at = 0
    for table, indices in requests:
        kinds, starts, decoded = table._arrays
        stored, kind = table._verified(indices.tolist()), kinds[indices]
        addresses.append(starts[indices] + np.uint64(table._address))
        for place in np.flatnonzero(kind == CONSTANT).tolist():
            index = int(indices[place])
            kept.append(bytes((table.values[index],)) * table.sizes[index])
            addresses[-1][place] = address_of_bytes(kept[-1])
        chosen = np.flatnonzero(kind == COMPRESSED)
        packed += [stored[place] for place in chosen.tolist()]
        sizes.append(decoded[indices[chosen]])
        places.append(chosen + at)
        at += len(indices)
    joined = np.concatenate(addresses)
    if packed:
        content, joined[np.concatenate(places)] = codec.decompress_frames(packed, np.concatenate(sizes))
        kept.append(content)
    return kept, joined


def _check_entry(index: int, kind: int, value: int, size: int, loose: bool) -> None:
    if kind == RAW:
        possible = value <= size if loose else value == size
    elif kind == COMPRESSED:
        possible = 0 < value < size
    else:
        possible = kind == CONSTANT and value < 256
    if not possible:
        raise FormatError(f"frame table entry {index} is impossible; the payload is forged")
