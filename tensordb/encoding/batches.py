"""Chunks to frames, one thread's share of them at a time; of a delta, each chunk as its change or by itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from tensordb.encoding import packing
from tensordb.encoding.filters import Delta
from tensordb.encoding.frames import CONSTANT, FrameList, Piece, pieces_of
from tensordb.encoding.layout import Layout
from tensordb.encoding.plans import MINIMUM_SAVING, Bytes, Plan
from tensordb.encoding.scratch import scratch

_STRIP, _STEP = 16 << 10, 1 << 10
_WORTH_ESTIMATING = 4 * _STRIP
_FAR_BELOW, _DOUBT = 0.8, 1 - MINIMUM_SAVING
"""The shares, of the size that other chunks have by themselves and of that estimated from a strip, below which a change
is taken without trying the chunk by itself."""


def frames_of(codes: Bytes, room: Bytes | None, first: int, layout: Layout, plan: Plan) -> FrameList:
    """Return the frames of a batch.

    Args:
        codes: Of the batch.
        room: Of as many bytes, for what is stored raw; None to make it where it is needed.
        first: Number of the batch's first chunk.
        layout: Of the tensor.
        plan: How.
    """
    if _could_be_packed(codes, layout, plan) and (loops := packing.ready()) is not None:
        return _packed(codes, layout, plan, loops)
    frames = FrameList()
    room = np.empty(codes.nbytes, np.uint8) if room is None else room
    # Where each record has its slice of each group, so has each chunk: all are taken apart in one go.
    step = codes.nbytes if plan.filter.sliceable else layout.chunk_bytes
    for begin in range(0, codes.nbytes, step):
        part = codes[begin : begin + step]
        if plan.base is not None and isinstance(plan.filter, Delta):
            base = plan.base(first + begin // step)
            change = plan.filter.split_against(part, base, room[begin : begin + step])
            frames.add(_smaller(part, change, plan, layout))
        else:
            groups = plan.filter.split_into(room[begin : begin + step], part, layout.records(part.nbytes))
            frames.add(_pieces(groups, layout, plan))
    return frames


def _could_be_packed(codes: Bytes, layout: Layout, plan: Plan) -> bool:
    """Tell whether a batch has many whole chunks that are compressed, each record with its slice of each group."""
    many = codes.nbytes >= packing.MANY_CHUNKS * layout.chunk_bytes and codes.nbytes % layout.chunk_bytes == 0
    whole = many and plan.filter.sliceable and plan.base is None and plan.codec.id > 0
    return whole and all(plan.filter.shares(layout.chunk_bytes))


def _packed(codes: Bytes, layout: Layout, plan: Plan, loops: Any) -> FrameList:
    """Return the frames of such a batch in one buffer."""
    groups = plan.filter.split_into(scratch("groups", codes.nbytes), codes, layout.records(codes.nbytes))
    shares = zip(groups, plan.filter.shares(layout.chunk_bytes), plan.keep_below, strict=True)
    return packing.packed([packing.column_of(data, size, plan.codec, keep) for data, size, keep in shares], loops)


def _pieces(groups: Sequence[Bytes], layout: Layout, plan: Plan) -> list[Piece]:
    """Return the frames of the groups of one or more chunks, chunk by chunk."""
    codec = plan.codec if plan.codec.id else None
    sizes = plan.filter.shares(layout.chunk_bytes)
    columns = [
        pieces_of(data, size, codec, keep) for data, size, keep in zip(groups, sizes, plan.keep_below, strict=True)
    ]
    return list(chain.from_iterable(zip(*columns, strict=True)))


def _smaller(part: Bytes, groups: Sequence[Bytes], plan: Plan, layout: Layout) -> list[Piece]:
    """Return the frames of a chunk as its change from the base, or by itself where that is hardly larger.

    A chunk by itself is read without its base. It is not tried where what is known of others, or a strip of it, leaves
    no doubt.
    """
    change = _pieces(groups, layout, plan)
    if _nbytes(change) < _FAR_BELOW * plan.alone * part.nbytes:
        return change
    if part.nbytes >= _WORTH_ESTIMATING:
        begin = (part.nbytes - _STRIP) // 2 // _STEP * _STEP
        strip = _pieces(plan.filter.split(part[begin : begin + _STRIP], 1), layout, plan)
        if _nbytes(change) * _STRIP < _DOUBT * _nbytes(strip) * part.nbytes:
            return change
    alone = _pieces(plan.filter.split(part, 1), layout, plan)
    return change if _nbytes(change) < (1 - MINIMUM_SAVING) * _nbytes(alone) else alone


def _nbytes(pieces: Sequence[Piece]) -> int:
    return sum(len(data) for kind, data in pieces if kind != CONSTANT)
