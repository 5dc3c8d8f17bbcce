"""What a way to write is: filter, codec, and what is kept. A reader never asks how it was chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding.codecs import Codec, codec_named
from tensordb.encoding.filters import Delta, Filter, NoFilter

MINIMUM_SAVING = 0.015

Bytes = NDArray[np.uint8]
ReadChunk = Callable[[int], Bytes]
"""Returns the codes of a chunk."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A way to write.

    Attributes:
        filter: What cuts chunks into groups.
        codec: What compresses a group.
        keep_below: For each group, the share of its size below which its compressed form is kept; 0.0 not to try.
        optional: Whether storing raw is preferred when the plan saves less than ``MINIMUM_SAVING``.
        base: Reads the codes of the tensor that the filter ``delta`` looks for changes from.
        alone: The share of its size that a chunk is expected to have without the base; 0.0 when nothing is known.
    """

    filter: Filter
    codec: Codec
    keep_below: tuple[float, ...]
    optional: bool = False
    base: ReadChunk | None = None
    alone: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """What is to be written.

    Attributes:
        data: The bytes of the codes.
        dtype: Of the codes, by torch's name.
        shape: Of the tensor.
        record_bytes: Of a page's record; 0 when this is no page.
        bits: Bits that a code needs.
        quantized: Whether the codes are those of a quantizer.
    """

    data: Bytes
    dtype: str
    shape: tuple[int, ...]
    record_bytes: int
    bits: int
    quantized: bool


def always(filter_: Filter, codec: Codec) -> Plan:
    """Return a plan that tries every group and keeps whatever is smaller."""
    return Plan(filter_, codec, (1.0,) * filter_.groups)


def unless_raw(filter_: Filter, codec: Codec) -> Plan:
    """Return a plan that tries every group and gives way to raw bytes where it saves too little."""
    return Plan(filter_, codec, (1 - MINIMUM_SAVING,) * filter_.groups, optional=True)


def delta(base: bytes, read: ReadChunk, width: int) -> Plan:
    """Return the plan that keeps what changed since the content `base`, for words of `width` bytes."""
    filter_ = Delta(base, (1,) * width)
    keep = (1.0, 1.0, *(1 - MINIMUM_SAVING,) * width)
    return Plan(filter_, QUICK, keep, base=read)


RAW_PLAN = Plan(NoFilter(), codec_named("none"), (0.0,))
HUFFMAN = codec_named("zstd", strategy="huffman")
QUICK = codec_named("zstd", strategy="huffman", level=1)
ZSTD = codec_named("zstd")
