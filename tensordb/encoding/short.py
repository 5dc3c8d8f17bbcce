"""Small tensors put together in a few calls: where a read takes longer to say what is to be done than to do it.

A tensor of one chunk, or one record of a page, that is stored without a quantizer, as it is or in planes: what has to
be looked up in its header is looked up once. Everything else goes the way of `chunks` and `gather`, with the same
result. Invariants: a frame is verified whenever `frames` would verify it; tensors own their memory; threads may share
a `ShortRead`, since what it works with is the thread's.
"""

from __future__ import annotations

import ctypes
import threading
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from tensordb.encoding import kernels
from tensordb.encoding.addresses import address_of, address_of_bytes
from tensordb.encoding.chunks import Chunks
from tensordb.encoding.filters import NoFilter, Planes
from tensordb.encoding.filters.words import WORDS
from tensordb.encoding.frames import CONSTANT, RAW
from tensordb.tensors import dtype_from_name

MOST_NBYTES = 64 << 10
"""Bytes of a tensor up to which it is read so: a larger one had better not be moved twice."""
_KEPT = 4
"""Sizes of tensors for which a thread keeps memory."""

_thread = threading.local()
_move = ctypes.memmove


class _Part(NamedTuple):
    """A frame with what the tensor has of it.

    Attributes:
        frame: Its number.
        stored: Its bytes in the payload.
        checksum: Of those.
        size: Bytes that they stand for; 0 if it is these themselves.
        constant: The byte that all of those are, for a constant frame.
        steps: Where in what they stand for the tensor's planes begin.
        places: Where the planes are in memory; none if they have to be made.
    """

    frame: int
    stored: memoryview
    checksum: int
    size: int
    constant: bytes
    steps: tuple[int, ...]
    places: tuple[int, ...]


class ShortRead:
    """One small tensor, ready to be decoded."""

    __slots__ = ("_chunks", "_dtype", "_nbytes", "_parts", "_raw_planes", "_shape", "_width", "_words")

    def __init__(self, chunks: Chunks, shape: tuple[int, ...], nbytes: int, chunk: int, within: int) -> None:
        """Take record number `within` of a chunk, or the whole chunk as number 0 of one."""
        self._chunks = chunks
        # Torch takes a number in half the time that it takes to look into a tuple.
        self._shape = shape[0] if len(shape) == 1 else shape
        self._dtype = dtype_from_name(chunks.descriptor.spec.dtype)
        self._nbytes = nbytes
        filter_ = chunks.filter
        sizes = filter_.sizes if isinstance(filter_, Planes) else (1,)
        self._width = sum(sizes)
        self._words = nbytes // self._width
        first = chunk * len(sizes)
        self._parts = [self._part(first + group, size, within) for group, size in enumerate(sizes)]
        self._raw_planes: list[list[NDArray[np.uint8]]] | None = None

    @classmethod
    def of(cls, chunks: Chunks) -> Self | None:
        """Return what reads a tensor of one chunk and one record; None if it is none, or has to go another way."""
        layout = chunks.layout
        if layout.chunks != 1 or layout.record_bytes not in (0, layout.nbytes) or not _suits(chunks, layout.nbytes):
            return None
        return cls(chunks, chunks.descriptor.spec.shape, layout.nbytes, 0, 0)

    @classmethod
    def of_record(cls, chunks: Chunks, row: int) -> Self | None:
        """Return what reads one record of a page, its number from 0; None if it has to go another way."""
        layout, shape = chunks.layout, chunks.descriptor.spec.shape
        if not layout.record_bytes or not 0 <= row < shape[0] or not _suits(chunks, layout.record_bytes):
            return None
        chunk, within = divmod(row, layout.chunk_bytes // layout.record_bytes)
        return cls(chunks, shape[1:], layout.record_bytes, chunk, within)

    def decode(self) -> torch.Tensor:
        """Return the tensor.

        Raises:
            IntegrityError: if a frame is damaged.
        """
        chunks, nbytes = self._chunks, self._nbytes
        if not chunks.frames.trusted:
            self._verify()
        decompress = chunks.codec.decompress
        made = [
            None if places else constant * size if constant else decompress(stored, size)
            for _, stored, _, size, constant, _, places in self._parts
        ]
        out = torch.empty(self._shape, dtype=self._dtype)
        if self._width == 1:
            _, _, _, _, _, steps, places = self._parts[0]
            _move(out.data_ptr(), places[0] if places else address_of_bytes(made[0]) + steps[0], nbytes)
            return out
        work = _workspace(self._width, self._words)
        compiled = kernels.ready(nbytes)
        if compiled is None:
            work.merge(self._planes(made))
        else:
            self._find(made, work.places)
            compiled.merge[self._width](work.places, work.words)
        _move(out.data_ptr(), work.address, nbytes)
        return out

    def _part(self, frame: int, size: int, within: int) -> _Part:
        frames, words = self._chunks.frames, self._words
        begin = within * size * words
        steps = tuple(range(begin, begin + size * words, words))
        stored, checksum = frames.stored(frame)
        if frames.kinds[frame] == RAW:
            start = frames.addresses((frame,), (stored,))[0]
            return _Part(frame, stored, checksum, 0, b"", steps, tuple(start + step for step in steps))
        constant = bytes((frames.values[frame],)) if frames.kinds[frame] == CONSTANT else b""
        return _Part(frame, stored, checksum, frames.sizes[frame], constant, steps, ())

    def _verify(self) -> None:
        for part in self._parts:
            if xxh3_64_intdigest(part.stored) != part.checksum:
                self._chunks.frames.verified(part.frame)  # which says what is wrong

    def _find(self, made: list[bytes | None], places: NDArray[np.uint64]) -> None:
        """Put the addresses of the planes into `places`."""
        plane = 0
        for (_, _, _, _, _, steps, known), content in zip(self._parts, made, strict=True):
            if content is not None:
                start = address_of_bytes(content)
                known = tuple([start + step for step in steps])
            for place in known:
                places[plane] = place
                plane += 1

    def _planes(self, made: list[bytes | None]) -> list[NDArray[np.uint8]]:
        raw, words = self._raw_planes, self._words
        if raw is None:
            raw = self._raw_planes = [
                [np.frombuffer(part.stored, np.uint8, words, step) for step in part.steps] if part.places else []
                for part in self._parts
            ]
        planes: list[NDArray[np.uint8]] = []
        for part, content, known in zip(self._parts, made, raw, strict=True):
            planes += known if content is None else [np.frombuffer(content, np.uint8, words, s) for s in part.steps]
        return planes


class _Workspace:
    """Where a thread puts words together, with every view of it that this takes."""

    __slots__ = ("_columns", "_one", "_rotated", "_top", "address", "places", "words")

    def __init__(self, width: int, words: int) -> None:
        kind = WORDS[width]
        self._rotated = np.empty(words, kind)
        mixed = self._rotated.view(np.uint8).reshape(words, width)
        self._columns = [mixed[:, width - 1 - plane] for plane in range(width)]
        self._one, self._top = kind(1), kind(8 * width - 1)
        self.places = np.empty(width, np.uint64)
        self.words = np.empty(words, kind)
        self.address = address_of(self.words)

    def merge(self, planes: list[NDArray[np.uint8]]) -> None:
        """Write the words of these planes to `words`, as the compiled loops do."""
        rotated, words = self._rotated, self.words
        for column, plane in zip(self._columns, planes, strict=True):
            column[...] = plane
        np.right_shift(rotated, self._one, out=words)
        np.left_shift(rotated, self._top, out=rotated)
        np.bitwise_or(words, rotated, out=words)


def _workspace(width: int, words: int) -> _Workspace:
    known: dict[tuple[int, int], _Workspace] | None = getattr(_thread, "known", None)
    if known is None:
        known = _thread.known = {}
    found = known.get((width, words))
    if found is None:
        if len(known) >= _KEPT:
            known.clear()
        found = known[width, words] = _Workspace(width, words)
    return found


def _suits(chunks: Chunks, nbytes: int) -> bool:
    return (
        0 < nbytes <= MOST_NBYTES
        and chunks.quantizer is None
        and type(chunks.filter) in (Planes, NoFilter)
        and chunks.descriptor.spec.dtype != "complex32"  # of which torch warns with each new one
    )
