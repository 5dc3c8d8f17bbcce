"""Whether a tensor is to be stored as what changed since a base: a sample of both decides before anything is written.

A change costs a second tensor to be read, so it has to save as much as compression has to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tensordb.encoding.filters.words import word_bytes
from tensordb.encoding.plans import MINIMUM_SAVING, Bytes, Codes, Plan, delta
from tensordb.encoding.sampling import Sample, shares_of
from tensordb.encoding.scratch import scratch

if TYPE_CHECKING:
    from tensordb.encoding.chunks import Chunks
    from tensordb.encoding.reading import PayloadReader

_WORTH_A_BASE = 4 << 10
"""Bytes below which a tensor is stored by itself: what a change saves is less than what finding its base costs."""
_ONE_OF, _MOST = 6, 16
"""One chunk of so many is looked at, and at most so many: what did not change may lie together."""
_STRIP = 32 << 10
_CLEAR = 0.85
"""The share of the size of the chunk by itself below which the changes of the first two chunks settle it. Where others
changed more, each of them is still stored by itself."""


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """A stored tensor that another one is to be stored as a difference from.

    Attributes:
        content_id: Its content id; reading the other one will ask for it.
        reader: Its payload.
    """

    content_id: bytes
    reader: PayloadReader


class BaseChunks:
    """The chunks of a base, each read once: those that were looked at are kept until they are taken."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._kept: dict[int, Bytes] = {}

    def look(self, index: int) -> Bytes:
        """Return the codes of a chunk, which will be taken later."""
        if index not in self._kept:
            self._kept[index] = self._read(index, np.empty(self._nbytes(index), np.uint8))
        return self._kept[index]

    def take(self, index: int) -> Bytes:
        """Return the codes of a chunk, which are the caller's while he holds them."""
        kept = self._kept.pop(index, None)
        return self._read(index, scratch("base", self._nbytes(index))) if kept is None else kept

    def _read(self, index: int, out: Bytes) -> Bytes:
        self._chunks.read_codes(index, index + 1, out)
        return out

    def _nbytes(self, index: int) -> int:
        begin, end = self._chunks.layout.span(index, index + 1)
        return end - begin


def with_base(
    plans: list[Plan], base: Base, codes: Codes, chunk_bytes: int, content_id: Callable[[], bytes]
) -> list[Plan]:
    """Return the plan that keeps changes, if it makes the tensor smaller, and else those given.

    Args:
        plans: To write the tensor by itself.
        base: What changes are looked for from; of any kind.
        codes: What is to be written.
        chunk_bytes: Of a chunk.
        content_id: Returns the tensor's. One that is equal to the base would become its own.
    """
    nbytes, chunks = codes.data.nbytes, base.reader._chunks
    if nbytes < _WORTH_A_BASE or not chunks.goes_with(codes.dtype, nbytes, chunk_bytes):
        return plans
    known = BaseChunks(chunks)
    change = delta(base.content_id, known.take, word_bytes(codes.dtype))
    alone = changed = 0.0
    looked = 0
    same = True
    for index in _spread(-(-nbytes // chunk_bytes)):
        piece = _strip(codes.data[index * chunk_bytes :][:chunk_bytes], known.look(index))
        same = same and piece.base is not None and np.array_equal(piece.data, piece.base)
        *others, share = shares_of([*plans, change], [piece], chunk_bytes)
        alone, changed = alone + min(others), changed + min(share, *others)
        looked += 1
        if looked == 2 and not same and changed < _CLEAR * alone:
            break
    if changed >= (1 - MINIMUM_SAVING) * alone or (same and content_id() == base.content_id):
        return plans
    return [replace(change, alone=alone / looked)]


def _spread(chunks: int) -> Sequence[int]:
    """Return the chunks to look at, those first that are far apart."""
    count = min(max(1, chunks // _ONE_OF), _MOST)
    found = [int((number + 0.5) * chunks / count) for number in range(count)]
    return [*found[:: max(1, count // 2)], *(each for at, each in enumerate(found) if at % max(1, count // 2))]


def _strip(data: Bytes, base: Bytes) -> Sample:
    """Return a piece in the middle of a chunk."""
    size = data.nbytes if data.nbytes <= 2 * _STRIP else _STRIP
    begin = (data.nbytes - size) // 2 // 64 * 64
    return Sample(data[begin : begin + size], 1, base[begin : begin + size])
