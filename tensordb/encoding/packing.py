"""Frames of many chunks laid out at once, in one piece of memory: Python does no more for each than ask its checksum.

What comes out is what `FrameList.add` makes of the same pieces, byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from tensordb.encoding import kernels
from tensordb.encoding.addresses import address_of
from tensordb.encoding.codecs import Codec
from tensordb.encoding.format import ALIGNMENT
from tensordb.encoding.frames import COMPRESSED, CONSTANT, LENGTH_BITS, PADDING, RAW, Bytes, FrameList, is_constant

MANY_CHUNKS = 8
"""Chunks below which a list of pieces is as fast."""


@dataclass(frozen=True, slots=True)
class Column:
    """The frames of one group in many chunks.

    Attributes:
        kinds: Of each frame.
        values: What the table says of each: its length, or the byte that a constant one repeats.
        addresses: Where the bytes of each are in memory; of no meaning for a constant one.
        kept: What keeps them there.
    """

    kinds: NDArray[np.int64]
    values: NDArray[np.int64]
    addresses: NDArray[np.uint64]
    kept: Any


def ready() -> Any:
    """Return the compiled loops, which are loaded with those of planes, or None while they are not there."""
    return kernels.ready(0)


def column_of(data: Bytes, size: int, codec: Codec, keep_below: float) -> Column:
    """Cut a group into pieces of `size` bytes, each in its smallest form; arguments are those of `pieces_of`.

    All pieces are whole, and there are at least `MANY_CHUNKS`.
    """
    pieces = data.reshape(-1, size)
    kinds, values = np.full(len(pieces), RAW), np.full(len(pieces), size)
    addresses = np.uint64(address_of(data)) + np.arange(len(pieces), dtype=np.uint64) * np.uint64(size)
    kept: Any = data
    if keep_below > 0:
        frames, places, lengths = codec.compress_frames(data, size)
        smaller = lengths < keep_below * size
        kinds[smaller], values[smaller], addresses[smaller] = COMPRESSED, lengths[smaller], places[smaller]
        kept = data, frames
    for index in np.flatnonzero(pieces[:, 0] == pieces[:, -1]).tolist():
        if is_constant(pieces[index]):
            kinds[index], values[index] = CONSTANT, pieces[index, 0]
    return Column(kinds, values, addresses, kept)


def packed(columns: Sequence[Column], loops: Any) -> FrameList:
    """Return the frames chunk by chunk, with what is between them, as one buffer; `loops` are what `ready` returned."""
    kinds, values, addresses = (
        np.stack([getattr(column, name) for column in columns], axis=1).reshape(-1)
        for name in ("kinds", "values", "addresses")
    )
    lengths = np.where(kinds == CONSTANT, 0, values)
    ends = np.cumsum(lengths + -lengths % ALIGNMENT)
    starts = np.append(0, ends[:-1])
    padding = int(ends[-1] - starts[-1] - lengths[-1])
    body = np.empty(int(ends[-1]) - padding, np.uint8)
    loops.pack(addresses, lengths, starts, body)
    view = memoryview(body)  # type: ignore[arg-type]  # an array is a buffer
    spans = zip(starts.tolist(), (starts + lengths).tolist(), strict=True)
    checksums = [*map(xxh3_64_intdigest, [view[begin:end] for begin, end in spans])]
    for index in np.flatnonzero(kinds == CONSTANT).tolist():
        checksums[index] = 0
    buffers: list[Any] = [view] if len(view) else []
    if padding:
        buffers.append(PADDING[padding])
    return FrameList((kinds << LENGTH_BITS | values).tolist(), checksums, buffers, int(ends[-1]), padding)
