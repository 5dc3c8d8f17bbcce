"""Parts of a stored tensor: selected runs of elements and single records, decoding only the chunks they touch."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding.chunks import Chunks
from tensordb.encoding.filters import NoFilter
from tensordb.encoding.filters.base import Slices
from tensordb.encoding.indexing import chunk_of_runs
from tensordb.encoding.workers import for_each

_SHORT_RUN = 64
MOVED: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}
"""Elements as NumPy moves them: by size, never by meaning."""

Bytes = NDArray[np.uint8]
Rows = Sequence[int] | NDArray[Any]
"""Positions along dimension 0; negative ones count from the end."""


def gather_runs(chunks: Chunks, starts: NDArray[np.int64], length: int) -> Bytes:
    """Return the bytes of runs of elements, one after the other.

    Args:
        chunks: The payload.
        starts: Where runs begin, ascending and without overlap.
        length: Elements of each run, at least 1.
    """
    kind = MOVED[chunks.itemsize]
    out = np.empty((len(starts), length), kind)
    per_chunk = chunks.layout.chunk_bytes // chunks.codes_itemsize
    touched = chunk_of_runs(starts, length, per_chunk).tolist()

    def work(index: int) -> None:
        chunk = touched[index]
        begin, end = chunk * per_chunk, min((chunk + 1) * per_chunk, chunks.elements)
        values = np.empty((end - begin) * chunks.itemsize, np.uint8)
        chunks.read_values(chunk, chunk + 1, values)
        _scatter(values.view(kind), begin, starts, out)

    for_each(len(touched), work)
    return out.reshape(-1).view(np.uint8)


def _scatter(values: NDArray[Any], begin: int, starts: NDArray[np.int64], out: NDArray[Any]) -> None:
    """Copy what the runs want of a chunk, whose elements begin at `begin`."""
    length, end = out.shape[1], begin + len(values)
    first = int(np.searchsorted(starts, begin - length, "right"))
    last = int(np.searchsorted(starts, end, "left"))
    whole_first = int(np.searchsorted(starts, begin, "left"))
    whole_last = int(np.searchsorted(starts, end - length, "right"))
    if length < _SHORT_RUN and whole_last > whole_first:
        positions = (starts[whole_first:whole_last] - begin)[:, None] + np.arange(length)
        out[whole_first:whole_last] = values[positions]
        rest = [*range(first, whole_first), *range(whole_last, last)]
    else:
        rest = list(range(first, last))
    for run in rest:
        start = int(starts[run])
        low, high = max(start, begin), min(start + length, end)
        out[run, low - start : high - start] = values[low - begin : high - begin]


def gather_records(requests: Sequence[tuple[Chunks, list[int]]]) -> Bytes:
    """Return the bytes of records of pages, in the order of the requests and of the rows in each.

    All payloads hold records of the same spec, and rows are not negative. Those encoded in the same way are put
    together and dequantized in one pass over all of them.
    """
    alike: dict[Any, list[tuple[int, Chunks, list[int]]]] = {}
    at = 0
    for chunks, rows in requests:
        alike.setdefault((chunks.quantizer, chunks.filter), []).append((at, chunks, rows))
        at += len(rows)
    if len(alike) == 1:
        return _records_alike(requests)
    first = requests[0][0]
    out = np.empty((at, first.record_elements * first.itemsize), np.uint8)
    for members in alike.values():
        places = np.concatenate([np.arange(at, at + len(rows)) for at, _, rows in members])
        out[places] = _records_alike([(chunks, rows) for _, chunks, rows in members]).reshape(len(places), -1)
    return out.reshape(-1)


def _records_alike(requests: Sequence[tuple[Chunks, list[int]]]) -> Bytes:
    """Return the bytes of records whose payloads share quantizer and filter."""
    first = requests[0][0]
    count = sum(len(rows) for _, rows in requests)
    layout = first.layout
    codes = np.empty(count * layout.record_bytes, np.uint8)
    if first.filter.sliceable:
        slices = Slices(tuple(first.filter.shares(layout.record_bytes)))
        for chunks, rows in requests:
            _take_slices(chunks, rows, slices)
        first.filter.gather(slices, codes)
    else:
        slices = Slices((layout.record_bytes,))
        for chunks, rows in requests:
            _take_chunks(chunks, rows, slices)
        NoFilter().gather(slices, codes)
    if first.quantizer is None:
        return codes
    parameters = [chunks.record_parameters(np.array(rows, np.int64)) for chunks, rows in requests]
    joined = tuple(np.concatenate(arrays) for arrays in zip(*parameters, strict=True))
    spec = first.descriptor.spec
    near = first.where.whole(joined, count)
    out = np.empty(count * first.record_elements * first.itemsize, np.uint8)
    first.quantizer.restore(codes, near, spec.dtype, out)
    _put_exceptions(requests, out)
    return out


def _put_exceptions(requests: Sequence[tuple[Chunks, list[int]]], out: Bytes) -> None:
    """Put the exceptions of records into `out`, which holds the bytes of all records."""
    at = 0
    for chunks, rows in requests:
        elements, size = chunks.record_elements, chunks.record_elements * chunks.itemsize
        if chunks.descriptor.exceptions:
            for row, place in zip(rows, range(at, at + len(rows) * size, size), strict=True):
                chunks.put_exceptions(out[place : place + size], row * elements, (row + 1) * elements)
        at += len(rows) * size


def _take_slices(chunks: Chunks, rows: list[int], slices: Slices) -> None:
    """Add the records' shares of each group; a frame is verified and decoded once for all its rows.

    This is the loop that random reads spend their time in: a few microseconds for a row.
    """
    layout, frames = chunks.layout, chunks.frames
    per_chunk = layout.chunk_bytes // layout.record_bytes
    count, first = layout.group_count, len(slices.chunks)
    touched = {chunk: first + order for order, chunk in enumerate(dict.fromkeys(row // per_chunk for row in rows))}
    indices = [chunk * count + group for chunk in touched for group in range(count)]
    contents = frames.contents(indices, chunks.codec)
    addresses = frames.addresses(indices, contents)
    slices.chunks += [contents[at : at + count] for at in range(0, len(indices), count)]
    slices.addresses += [addresses[at : at + count] for at in range(0, len(indices), count)]
    slices.which += [touched[row // per_chunk] for row in rows]
    slices.within += [row % per_chunk for row in rows]


def _take_chunks(chunks: Chunks, rows: list[int], slices: Slices) -> None:
    """Add the records from chunks that are put together whole."""
    layout = chunks.layout
    per_chunk = layout.chunk_bytes // layout.record_bytes
    touched: dict[int, int] = {}
    for row in rows:
        chunk = row // per_chunk
        if chunk not in touched:
            touched[chunk] = len(slices.chunks)
            begin, end = layout.span(chunk, chunk + 1)
            codes = np.empty(end - begin, np.uint8)
            chunks.read_codes(chunk, chunk + 1, codes)
            slices.chunks.append([codes])
        slices.which.append(touched[chunk])
        slices.within.append(row % per_chunk)


def positions_of(rows: Rows, size: int) -> list[int]:
    """Return rows as non-negative positions."""
    positions = rows.tolist() if isinstance(rows, np.ndarray) else list(map(operator.index, rows))
    if not positions:
        return positions
    low, high = min(positions), max(positions)
    if not -size <= low <= high < size:
        raise IndexError(f"rows {low} to {high} are out of range for {size} rows")
    return [row + size if row < 0 else row for row in positions] if low < 0 else positions


def gather_rows(chunks: Chunks, rows: list[int]) -> Bytes:
    """Return the bytes of rows of a tensor that is no page."""
    elements = chunks.elements // chunks.descriptor.spec.shape[0]
    unique, inverse = np.unique(np.array(rows, np.int64), return_inverse=True)
    data = gather_runs(chunks, unique * elements, elements)
    return data.reshape(len(unique), -1)[inverse].reshape(-1)
