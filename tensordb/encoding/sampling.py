"""How large a plan would make a tensor, from pieces spread over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tensordb.encoding.filters import Delta
from tensordb.encoding.format import ALIGNMENT, ENTRY_BYTES
from tensordb.encoding.frames import CONSTANT, pieces_of
from tensordb.encoding.plans import Bytes, Codes, Plan

_STEP = 1 << 10
"""Pieces begin at multiples of this, and so never in the middle of an element."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A piece of the codes.

    Attributes:
        data: Its bytes.
        records: How many records of a page it holds; 1 where this is no page.
        base: The same piece of what changes are looked for from.
    """

    data: Bytes
    records: int
    base: Bytes | None = None


def pieces(codes: Codes, chunk_bytes: int, total: int, size: int) -> list[Sample]:
    """Return pieces of about `size` bytes, each within what would be one chunk, spread over the tensor.

    Args:
        codes: What is to be written.
        chunk_bytes: Of a chunk.
        total: Bytes of all pieces.
        size: Of a piece; of a page, a piece is whole records.
    """
    unit = codes.record_bytes or _STEP
    size = max(unit, min(size, chunk_bytes) // unit * unit)
    count = max(1, total // size)
    if codes.data.nbytes <= count * size:
        found = [codes.data[at : at + chunk_bytes] for at in range(0, codes.data.nbytes, chunk_bytes)]
    else:
        # In the middle of as many equal parts: what a tensor begins and ends with is often not like the rest.
        stretch = (codes.data.nbytes - size) / count
        starts = [int((part + 0.5) * stretch) // unit * unit for part in range(count)]
        found = [codes.data[start : start + size] for start in starts]
    return [Sample(piece, piece.nbytes // codes.record_bytes if codes.record_bytes else 1) for piece in found]


def shares_of(plans: Sequence[Plan], sample: Sequence[Sample], chunk_bytes: int) -> list[float]:
    """Return for each plan the share of their raw size that the pieces would have, tables and padding included."""
    return [_share(plan, sample, chunk_bytes) for plan in plans]


def _share(plan: Plan, sample: Sequence[Sample], chunk_bytes: int) -> float:
    stored = overhead = total = 0
    codec = plan.codec if plan.codec.id else None
    for piece in sample:
        groups = _groups(plan, piece)
        for group, keep in zip(groups, plan.keep_below, strict=True):
            ((kind, data),) = pieces_of(group, max(1, len(group)), codec, keep)
            stored += 0 if kind == CONSTANT else len(data)
            overhead += ENTRY_BYTES + (0 if kind == CONSTANT else ALIGNMENT // 2)
        total += piece.data.nbytes
    # The sample's pieces are smaller than chunks, each of which has these costs but once.
    return (stored + overhead * min(1.0, total / len(sample) / chunk_bytes)) / total


def _groups(plan: Plan, piece: Sample) -> list[Bytes]:
    if isinstance(plan.filter, Delta) and piece.base is not None:
        return plan.filter.split_against(piece.data, piece.base)
    return plan.filter.split(piece.data, piece.records)
