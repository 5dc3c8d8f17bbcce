"""Rows of a page decoded straight to where they belong, row by row: into the batches of a training loop.

Nothing is done in Python for a row: checksums of the frames, one call to decompress those of all chunks that the rows
touch, one to put the rows together. The GIL is free while that goes on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding import kernels
from tensordb.encoding.addresses import address_of
from tensordb.encoding.chunks import Chunks
from tensordb.encoding.frames import locate
from tensordb.encoding.reading import PayloadReader

FEW_ROWS = 32
"""Rows of a page below which it is no faster than `decode_rows_many`."""
Rows = NDArray[np.int64]


def spread_rows(requests: Sequence[tuple[PayloadReader, Rows]], targets: NDArray[np.uint64]) -> bool:
    """Write rows of pages to memory.

    Args:
        requests: Readers with positions along dimension 0, none negative; all of rows of one dtype and shape.
        targets: Address of each row's place, one reader after the other. The caller vouches that there is room, aligned
            to the elements.

    Returns:
        Whether it was done. Not where pages are quantized or differ in how they are stored, where their filter needs
        whole chunks, or where no compiled loops are there (yet); nothing was written then.

    Raises:
        IndexError: A row is out of range.
        IntegrityError: A frame that is touched is damaged; what was written is then undefined.
    """
    first = requests[0][0]._chunks
    size = first.layout.record_bytes
    if not all(_spreads_like(reader._chunks, first) for reader, _ in requests):
        return False
    loops = kernels.ready_to_spread(len(targets) * size)
    if loops is None:
        return False
    parts = [_frames_of(reader, rows) for reader, rows in requests]
    kept, addresses = locate([(part[0].frames, part[1]) for part in parts], first.codec)
    counts = [len(part[1]) // first.layout.group_count for part in parts]
    before = np.repeat(np.cumsum(counts) - counts, [len(rows) for _, rows in requests])
    which = np.concatenate([part[2] for part in parts]) + before
    within = np.concatenate([part[3] for part in parts])
    contents = addresses.reshape(-1, first.layout.group_count)[which]
    first.filter.spread(loops, contents, within, size, targets)
    del kept  # not before: the addresses point into it
    return True


def _spreads_like(chunks: Chunks, first: Chunks) -> bool:
    """Tell whether records of a payload can be spread, in one go with those of the first one."""
    layout, other = chunks.layout, first.layout
    possible = layout.record_bytes > 0 and chunks.quantizer is None and chunks.filter.spreads
    alike = chunks is first or (
        (chunks.filter, chunks.codec, layout.record_bytes) == (first.filter, first.codec, other.record_bytes)
    )
    return possible and alike


def _frames_of(reader: PayloadReader, rows: Rows) -> tuple[Chunks, Rows, Rows, Rows]:
    """Return the frames that rows touch, chunk by chunk; which of these chunks has each row, and where in it."""
    chunks = reader._chunks
    layout = chunks.layout
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= reader.spec.shape[0]:
        raise IndexError(f"rows {low} to {high} are out of range for {reader.spec.shape[0]} rows")
    per_chunk = layout.chunk_bytes // layout.record_bytes
    chunk, within = np.divmod(rows, per_chunk)
    chunk -= low // per_chunk
    touched = np.zeros(high // per_chunk - low // per_chunk + 1, bool)
    touched[chunk] = True
    numbers = np.flatnonzero(touched) + low // per_chunk
    frames = (numbers[:, None] * layout.group_count + np.arange(layout.group_count)).reshape(-1)
    which = chunk if len(numbers) == len(touched) else (np.cumsum(touched) - 1)[chunk]
    return chunks, frames, which, within


def spread_bytes(rows: NDArray[np.uint8], targets: NDArray[np.uint64]) -> bool:
    """Copy ``rows[n, bytes]`` to memory, each to its target; return False, nothing done, if no loops are there.

    The caller vouches for the targets.
    """
    loops = kernels.ready_to_spread(rows.nbytes)
    if loops is None:
        return False
    rows = np.ascontiguousarray(rows)
    size = rows.shape[1]
    loops.copy(np.uint64(address_of(rows)) + np.arange(len(rows), dtype=np.uint64) * np.uint64(size), targets, size)
    return True
