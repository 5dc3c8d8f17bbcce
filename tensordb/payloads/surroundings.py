"""What lies around the payloads of a segment file: both copies of the header, zeros behind payloads, and the footer.

No payload suffers when these are damaged, but a file of which they are has met something that may damage more. Dead
bytes say nothing here: a rollback, a crash or a delete left them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tensordb.payloads.base import ALIGNMENT
from tensordb.payloads.files import store_error
from tensordb.payloads.layout import BLOCK_BYTES, FOOTER_BYTES, HEADER_BYTES, pack_footer, pack_header

Offsets = np.ndarray[Any, np.dtype[np.int64]]
_LIKE_A_FOOTER = FOOTER_BYTES * 3 // 4
"""Bytes by which the end of a file is known as a damaged footer, and not as what a killed writer left there."""


def damage_around(path: Path, segment: int, database_id: bytes, offsets: Offsets, lengths: Offsets) -> list[str]:
    """Return what is damaged around these payloads, which a committed catalog names; a file that is gone has nothing.

    Raises:
        StoreError: The file cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = [*_in_header(descriptor, segment, database_id)]
            found += _behind_payloads(descriptor, segment, database_id, offsets, lengths)
            found += _in_footer(descriptor, segment, database_id, int((offsets + lengths).max(initial=HEADER_BYTES)))
        finally:
            os.close(descriptor)
    except FileNotFoundError:  # compacted away meanwhile, or missing, which the payloads themselves tell
        return []
    except OSError as error:
        raise store_error("reading", path, error) from error
    return [f"{path}: {each}" for each in found]


def _in_header(descriptor: int, segment: int, database_id: bytes) -> Iterator[str]:
    expected, found = pack_header(segment, database_id), os.pread(descriptor, HEADER_BYTES, 0)
    for copy, begin in enumerate(range(0, HEADER_BYTES, BLOCK_BYTES), 1):
        end = begin + BLOCK_BYTES
        if found[begin:end] != expected[begin:end]:
            yield f"copy {copy} of the header, bytes {begin} to {end - 1}, is not what was written"


def _behind_payloads(
    descriptor: int, segment: int, database_id: bytes, offsets: Offsets, lengths: Offsets
) -> Iterator[str]:
    ends = offsets + lengths
    unaligned = ends % ALIGNMENT != 0
    for offset, end in zip(offsets[unaligned].tolist(), ends[unaligned].tolist(), strict=True):
        padding = os.pread(descriptor, -end % ALIGNMENT, end)
        if any(padding) and not _is_left_by(padding, pack_footer(segment, database_id, offset)[end - offset :]):
            yield f"the padding behind the payload at {offset}, bytes {end} to {end + len(padding) - 1}, is not zero"


def _is_left_by(padding: bytes, footer: bytes) -> bool:
    """Whether bytes are zero or what a short payload, written over a footer, has left of it."""
    return bool(footer) and all(found in (0, left) for found, left in zip(padding, footer, strict=False))


def _in_footer(descriptor: int, segment: int, database_id: bytes, end: int) -> Iterator[str]:
    place = os.fstat(descriptor).st_size - FOOTER_BYTES
    if place < end or place % ALIGNMENT:
        return
    expected, found = pack_footer(segment, database_id, place), os.pread(descriptor, FOOTER_BYTES, place)
    alike = sum(one == other for one, other in zip(found, expected, strict=False))
    if _LIKE_A_FOOTER <= alike < FOOTER_BYTES:
        yield f"the footer, bytes {place} to {place + FOOTER_BYTES - 1}, is not what was written"
