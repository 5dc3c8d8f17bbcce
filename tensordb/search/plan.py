"""Which stored objects hold the records that are searched, and in which parts they are read.

A page is a part. Whole tensors are put together until they are as large as a page, since comparing costs by the part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensordb.catalog.places import Places

PART_NBYTES = 4 << 20
"""Raw bytes of whole tensors that make a part, and at least one."""
_PART_RECORDS = 4096

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Records that are compared together.

    Attributes:
        key: The objects they are read from.
        numbers: Sequence number of each record.
        rows: Row of each in the page, None for whole tensors, which are rows in their order here.
        is_run: Whether the rows are the first of the page in their order.
    """

    key: bytes
    numbers: Ints
    rows: Ints | None
    is_run: bool


def parts_of(places: Places, nbytes: dict[int, int]) -> list[Part]:
    """Return all records of a dataset, or those of a condition, in parts.

    Args:
        places: Where they are.
        nbytes: Raw bytes of a tensor by its spec.
    """
    paged = places.page_rows >= 0
    return [*_pages(places, np.flatnonzero(paged)), *_wholes(places, np.flatnonzero(~paged), nbytes)]


def _pages(places: Places, which: Ints) -> Iterator[Part]:
    for members in _grouped(places.objects[which], which):
        page, rows = places.object_ids[int(places.objects[members[0]])], places.page_rows[members].astype(np.int64)
        yield Part(page, places.numbers[members], rows, bool((rows == np.arange(len(rows))).all()))


def _wholes(places: Places, which: Ints, nbytes: dict[int, int]) -> Iterator[Part]:
    for members in _grouped(places.spec_ids[which], which):
        size = nbytes[int(places.spec_ids[members[0]])]
        step = max(1, min(_PART_RECORDS, PART_NBYTES // max(1, size)))
        for begin in range(0, len(members), step):
            part = members[begin : begin + step]
            key = b"".join(places.object_ids[number] for number in places.objects[part].tolist())
            yield Part(key, places.numbers[part], None, True)


def _grouped(labels: NDArray[Any], which: Ints) -> Iterator[Ints]:
    """Yield the members of each label, those of a label in their order."""
    if len(which):
        order = np.argsort(labels, kind="stable")
        edges = np.flatnonzero(np.diff(labels[order])) + 1
        yield from np.split(which[order], edges)
