"""Rows of a page decoded straight to where they belong, row by row: into the batches of a training loop.

Nothing is done in Python for a row: checksums of the frames, one call to decompress those of all chunks that the rows
touch, one to put the rows together. The GIL is free while that goes on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding import kernels
from tensordb.encoding.addresses import address_of
from tensordb.encoding.reading import PayloadReader

FEW_ROWS = 32
"""Rows below which it is no faster than `decode_rows_many`."""


def spread_rows(reader: PayloadReader, rows: NDArray[np.int64], targets: NDArray[np.uint64]) -> bool:
    """Write rows of a page to memory.

    Args:
        reader: Of the page.
        rows: Positions along dimension 0, none negative.
        targets: Address of each row's place. The caller vouches that there is room, aligned to the elements.

    Returns:
        Whether it was done. Not where the page is quantized, where its filter needs whole chunks, or where no compiled
        loops are there (yet); nothing was written then.

    Raises:
        IndexError: A row is out of range.
        IntegrityError: A frame that is touched is damaged; what was written is then undefined.
    """
    chunks = reader._chunks
    layout = chunks.layout
    if not layout.record_bytes or chunks.quantizer is not None or not chunks.filter.spreads:
        return False
    if not len(rows):
        return True
    if rows.min() < 0 or rows.max() >= reader.spec.shape[0]:
        raise IndexError(f"rows {rows.min()} to {rows.max()} are out of range for {reader.spec.shape[0]} rows")
    loops = kernels.ready_to_spread(len(rows) * layout.record_bytes)
    if loops is None:
        return False
    chunk, within = np.divmod(rows, layout.chunk_bytes // layout.record_bytes)
    touched = np.zeros(layout.chunks, bool)
    touched[chunk] = True
    groups = layout.group_count
    frames = (np.flatnonzero(touched)[:, None] * groups + np.arange(groups)).reshape(-1)
    kept, addresses = chunks.frames.located(frames, chunks.codec)
    contents = addresses.reshape(-1, groups)[(np.cumsum(touched) - 1)[chunk]]
    chunks.filter.spread(loops, contents, within, layout.record_bytes, targets)
    del kept  # not before: the addresses point into it
    return True


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
