"""Where things are in a payload: chunks, groups within a chunk, and the frames that hold them. Arithmetic only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from tensordb.encoding.filters import Filter
from tensordb.encoding.filters.base import Slices
from tensordb.errors import InvalidInputError, UnsupportedFormatError

CHUNK_BYTES = 256 * 1024
PAGE_CHUNK_BYTES = 12 * 1024
PAGE_BATCH_BYTES = 1 << 20
PARAMETER_FRAME_BYTES = 256 * 1024
BATCH_BYTES = 1 << 20
STEPS = 16
MAX_CHUNK_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class Layout:
    """How the bytes of the codes are cut.

    A chunk is cut into frames, one for each group of the filter. In a page a chunk holds whole records; otherwise a
    chunk counts as one record.

    Attributes:
        nbytes: Bytes of all codes.
        chunk_bytes: Bytes of codes in each chunk but the last, which may have fewer.
        record_bytes: Bytes of codes of a page's record; 0 when this is no page.
        filter: What cuts a chunk into groups.
    """

    nbytes: int
    chunk_bytes: int
    record_bytes: int
    filter: Filter

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.nbytes // self.chunk_bytes)

    @property
    def batch(self) -> int:
        """Chunks that are worth one step of a loop: a few calls for all of them, and steps enough for all cores."""
        wanted = PAGE_BATCH_BYTES if self.record_bytes else min(self.nbytes // STEPS, BATCH_BYTES)
        return max(1, wanted // self.chunk_bytes)

    @property
    def batches(self) -> int:
        """Steps of a loop over all chunks. A last chunk that is shorter is a step of its own."""
        whole = self.nbytes // self.chunk_bytes
        return -(-whole // self.batch) + (whole < self.chunks)

    @property
    def group_count(self) -> int:
        """Frames of a chunk."""
        return self.filter.groups

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Return where the codes of chunks `first` to `last` (exclusive) begin and end, in bytes."""
        return first * self.chunk_bytes, min(last * self.chunk_bytes, self.nbytes)

    def batch_chunks(self, index: int) -> tuple[int, int]:
        """Return the first chunk of a batch and the one after its last."""
        whole, first = self.nbytes // self.chunk_bytes, index * self.batch
        return (first, min(first + self.batch, whole)) if first < whole else (whole, self.chunks)

    def records(self, nbytes: int) -> int:
        """Return how many records the filter keeps apart in whole chunks of so many bytes, or in a shorter one."""
        return max(1, nbytes // (self.record_bytes or self.chunk_bytes))

    def frame_sizes(self) -> list[int]:
        """Return the decoded bytes of every frame of the codes, or the most they can be: chunk by chunk."""
        if not self.chunks:
            return []
        last = self.nbytes - (self.chunks - 1) * self.chunk_bytes
        return self.filter.shares(self.chunk_bytes) * (self.chunks - 1) + self.filter.shares(last)

    def slices(self, nbytes: int, chunks: int) -> Slices:
        """Return where the records of whole chunks of `nbytes` bytes are, their contents still missing."""
        pieces = self.records(nbytes) if self.filter.by_record else 1
        which = [chunk for chunk in range(chunks) for _ in range(pieces)]
        return Slices(tuple(self.filter.shares(nbytes // pieces)), [], [], which, list(range(pieces)) * chunks)


def parameter_frames(total: int, itemsize: int) -> list[tuple[int, int]]:
    """Return the byte ranges of the frames of an array of `total` parameters, positions or exact elements."""
    edges = [*range(0, itemsize * total, PARAMETER_FRAME_BYTES), itemsize * total]
    return list(pairwise(edges))


def chunk_elements(elements: int, record_elements: int, itemsize: int) -> int:
    """Return how many elements a writer puts into a chunk; 0 for all.

    Args:
        elements: Of the whole tensor.
        record_elements: Of a page's record; 0 when this is no page.
        itemsize: Bytes of a code.

    Raises:
        InvalidInputError: if a record of a page is too large for a chunk.
    """
    if not record_elements:
        size = CHUNK_BYTES // itemsize
        return size if elements > size else 0
    record_bytes = record_elements * itemsize
    if record_bytes > MAX_CHUNK_BYTES // 16:
        raise InvalidInputError(
            f"records of {record_bytes} bytes are too large for a page, at most {MAX_CHUNK_BYTES // 16}; "
            "encode each by itself"
        )
    # Chunks that are a multiple of the alignment lie without gaps when stored raw, so that they can be mapped as one.
    step = 16 // math.gcd(16, record_bytes)
    records = max(step, PAGE_CHUNK_BYTES // record_bytes // step * step)
    return records * record_elements if elements > records * record_elements else 0


def layout_of(elements: int, record_elements: int, itemsize: int, chunk: int, filter_: Filter) -> Layout:
    """Return the layout that a header describes, once it is possible.

    Raises:
        FormatError: if the chunk size contradicts the rest.
    """
    size = chunk or max(1, elements, record_elements)
    torn = record_elements and size % record_elements
    if torn or (elements and size * itemsize > MAX_CHUNK_BYTES):
        raise UnsupportedFormatError(
            f"header has chunks of {size} elements, which this release cannot read; use a newer release"
        )
    return Layout(elements * itemsize, size * itemsize, record_elements * itemsize, filter_)
