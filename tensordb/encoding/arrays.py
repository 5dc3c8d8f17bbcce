"""Arrays that lie beside the codes, in raw frames: quantization parameters, and positions and values of exceptions.

They are read where they are; only the frames that a range lies in are verified.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding.frames import FrameTable
from tensordb.encoding.layout import PARAMETER_FRAME_BYTES
from tensordb.errors import FormatError

Shape = tuple[Any, int]
"""Type and number of the items of an array."""


def frames_needed(arrays: Sequence[Shape]) -> int:
    """Return how many frames hold these arrays, by arithmetic alone."""
    return sum(-(-np.dtype(dtype).itemsize * count // PARAMETER_FRAME_BYTES) for dtype, count in arrays)


@dataclass(frozen=True, slots=True)
class RawArray:
    """An array in consecutive raw frames.

    Attributes:
        frames: Those of the payload.
        payload: All of it.
        frame: The first of the array's frames.
        offset: Where the first begins.
        dtype: Of an item.
        count: Items.
    """

    frames: FrameTable
    payload: memoryview
    frame: int
    offset: int
    dtype: Any
    count: int

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return items start to stop once the frames that they lie in are verified."""
        itemsize = np.dtype(self.dtype).itemsize
        per_frame = PARAMETER_FRAME_BYTES // itemsize
        for index in range(start // per_frame, -(-stop // per_frame)):
            self.frames.verified(self.frame + index)
        return np.frombuffer(self.payload, self.dtype, stop - start, self.offset + itemsize * start)

    def read_floats(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return items start to stop of an array of float32, or of the bits of bfloat16, as float32."""
        items = self.read(start, stop)
        return items if self.dtype is np.float32 else (items.astype(np.uint32) << np.uint32(16)).view(np.float32)


def raw_arrays(payload: memoryview, frames: FrameTable, first: int, arrays: Sequence[Shape]) -> Iterator[RawArray]:
    """Yield the arrays that lie one after the other from frame `first` on.

    Raises:
        FormatError: if one of them is not stored raw.
    """
    for dtype, count in arrays:
        last = first + frames_needed([(dtype, count)])
        span = frames.raw_span(first, last)
        if span is None:
            raise FormatError("payload has quantization parameters that are not stored raw; it is forged")
        yield RawArray(frames, payload, first, span[0], dtype, count)
        first = last
