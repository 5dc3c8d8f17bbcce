"""Small tensors put together in a few calls: where a read takes longer to say what is to be done than to do it.

A tensor of one chunk, or one record of a page, that is stored without a quantizer, as it is or in planes: what has to
be looked up in its header is looked up once. Everything else goes the way of `chunks` and `gather`, with the same
result. Invariants: a frame is verified whenever `frames` would verify it; tensors own their memory; threads may share
a `ShortReads`, since what it works with is the thread's.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from tensordb.encoding import kernels
from tensordb.encoding.addresses import address_of, address_of_bytes
from tensordb.encoding.chunks import Chunks
from tensordb.encoding.filters import NoFilter, Planes
from tensordb.encoding.filters.words import WORDS
from tensordb.encoding.frames import CONSTANT, RAW, FrameTable
from tensordb.tensors import byte_view, dtype_from_name

MOST_NBYTES = 64 << 10
"""Bytes of a tensor up to which it is read so: a larger one had better not be moved twice."""
_KEPT = 4
"""Sizes of tensors for which a thread keeps memory."""

_CPU = torch.device("cpu")
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
    steps: range
    places: list[int]


class ShortReads:
    """The small tensor of a payload, or the records of a page, ready to be decoded one by one."""

    __slots__ = ("_chunks", "_dtype", "_nbytes", "_per_chunk", "_planes", "_shape", "_single", "_sizes", "_width")

    def __init__(self, chunks: Chunks, shape: tuple[int, ...], nbytes: int) -> None:
        """Take a payload whose tensor, or each of whose records, has this shape and so many bytes."""
        self._chunks = chunks
        # Torch takes a number in half the time that it takes to look into a tuple.
        self._shape = shape[0] if len(shape) == 1 else shape
        self._dtype = dtype_from_name(chunks.descriptor.spec.dtype)
        self._nbytes = nbytes
        self._sizes = chunks.filter.sizes if isinstance(chunks.filter, Planes) else (1,)
        self._width = sum(self._sizes)
        self._per_chunk = chunks.layout.chunk_bytes // nbytes
        self._single = None if chunks.layout.record_bytes else self._parts(0)
        self._planes: list[list[NDArray[np.uint8]]] | None = None

    @classmethod
    def of(cls, chunks: Chunks) -> Self | None:
        """Return what reads a tensor of one chunk, or the records of a page; None if it has to go another way."""
        layout, shape = chunks.layout, chunks.descriptor.spec.shape
        nbytes = layout.record_bytes or layout.nbytes
        if not layout.record_bytes and layout.chunks != 1:
            return None
        if (
            not 0 < nbytes <= MOST_NBYTES
            or chunks.quantizer is not None
            or type(chunks.filter) not in (Planes, NoFilter)
            or chunks.descriptor.spec.dtype == "complex32"  # of which torch warns with each new one
        ):
            return None
        return cls(chunks, shape[1:] if layout.record_bytes else shape, nbytes)

    def decode(self, row: int = 0) -> torch.Tensor:
        """Return the tensor, or the record of this number, which there must be.

        Raises:
            IntegrityError: if a frame is damaged.
        """
        chunks, nbytes = self._chunks, self._nbytes
        parts = self._single or self._parts(row)
        if not chunks.frames.trusted:
            _verify(chunks, parts)
        decompress = chunks.codec.decompress
        made = [
            None if places else constant * size if constant else decompress(stored, size)
            for _, stored, _, size, constant, _, places in parts
        ]
        # Whatever device torch makes tensors on by itself: this one's memory is written to.
        out = torch.empty(self._shape, dtype=self._dtype, device=_CPU)
        # What torch only pretends to make, as under a mode that traces, has no memory: asked for its bytes it says so.
        target = out.data_ptr() if type(out) is torch.Tensor else address_of(byte_view(out))
        if self._width == 1:
            _, _, _, _, _, steps, places = parts[0]
            _move(target, places[0] if places else address_of_bytes(made[0]) + steps[0], nbytes)
            return out
        work = _taken(self._width, nbytes // self._width)
        compiled = kernels.ready(nbytes)
        if compiled is None:
            work.merge(self._arrays(parts, made))
        else:
            _find(parts, made, work.places)
            compiled.merge[self._width](work.places, work.words)
        _move(target, work.address, nbytes)
        _put_back(work)
        return out

    def _parts(self, row: int) -> list[_Part]:
        chunk, within = divmod(row, self._per_chunk)
        frames, words, first = self._chunks.frames, self._nbytes // self._width, chunk * len(self._sizes)
        return [
            _part(frames, frame, range(within * size * words, (within + 1) * size * words, words))
            for frame, size in enumerate(self._sizes, first)
        ]

    def _arrays(self, parts: list[_Part], made: list[bytes | None]) -> list[NDArray[np.uint8]]:
        """Return the planes; those of a single tensor that are stored raw are looked up once."""
        words, known = self._nbytes // self._width, self._planes
        if known is None:
            known = [_arrays(part.stored, words, part.steps) if part.places else [] for part in parts]
            if self._single is not None:
                self._planes = known
        planes: list[NDArray[np.uint8]] = []
        for part, content, raw in zip(parts, made, known, strict=True):
            planes += raw if content is None else _arrays(content, words, part.steps)
        return planes


def _part(frames: FrameTable, frame: int, steps: range) -> _Part:
    stored, checksum = frames.stored(frame)
    if frames.kinds[frame] == RAW:
        (start,) = frames.addresses((frame,), (stored,))
        return _Part(frame, stored, checksum, 0, b"", steps, [start + step for step in steps])
    constant = bytes((frames.values[frame],)) if frames.kinds[frame] == CONSTANT else b""
    return _Part(frame, stored, checksum, frames.sizes[frame], constant, steps, [])


def _verify(chunks: Chunks, parts: list[_Part]) -> None:
    for part in parts:
        if xxh3_64_intdigest(part.stored) != part.checksum:
            chunks.frames.verified(part.frame)  # which says what is wrong


def _find(parts: list[_Part], made: list[bytes | None], places: NDArray[np.uint64]) -> None:
    """Put the addresses of the planes into `places`."""
    plane = 0
    for (_, _, _, _, _, steps, known), content in zip(parts, made, strict=True):
        if content is not None:
            start = address_of_bytes(content)
            known = [start + step for step in steps]
        for place in known:
            places[plane] = place
            plane += 1


def _arrays(content: Any, words: int, steps: range) -> list[NDArray[np.uint8]]:
    return [np.frombuffer(content, np.uint8, words, step) for step in steps]


class _Workspace:
    """Where a thread puts words together, with every view of it that this takes."""

    __slots__ = ("_columns", "_one", "_rotated", "_top", "address", "places", "size", "words")

    def __init__(self, width: int, words: int) -> None:
        kind = WORDS[width]
        self.size = width, words
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


def _taken(width: int, words: int) -> _Workspace:
    """Return a workspace that is nobody else's: not even of a signal's handler that reads in the midst of this."""
    kept: dict[tuple[int, int], _Workspace] | None = getattr(_thread, "kept", None)
    if kept is None:
        kept = _thread.kept = {}
    return kept.pop((width, words), None) or _Workspace(width, words)


def _put_back(work: _Workspace) -> None:
    kept: dict[tuple[int, int], _Workspace] = _thread.kept
    if len(kept) >= _KEPT:
        kept.clear()
    kept[work.size] = work
