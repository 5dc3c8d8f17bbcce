"""Finding payloads in segment files that no catalog tells anything about.

Invariants: a payload ends where its own header says; every byte between a file's header and its footer belongs to a
payload that is yielded, to padding, or to something that is told. Files are mapped, and only headers and the checksums
of frames are looked at.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tensordb.encoding.extent import is_whole, stored_nbytes
from tensordb.encoding.format import MAGIC
from tensordb.errors import FormatError, IntegrityError
from tensordb.payloads.base import ALIGNMENT
from tensordb.payloads.layout import FOOTER_BYTES, HEADER_BYTES, MAGIC_FOOTER


@dataclass(frozen=True, slots=True)
class Place:
    """Where a payload is."""

    file: Path
    begin: int
    end: int

    def map(self) -> memoryview:
        """Return its bytes; the map lives as long as a view of it.

        Raises:
            OSError: The file cannot be mapped.
        """
        first = self.begin - self.begin % mmap.ALLOCATIONGRANULARITY
        return memoryview(_mapped(self.file, first, self.end))[self.begin - first :]


def payloads_in(file: Path) -> Iterator[Place | str]:
    """Yield the payloads of a segment file whose headers are sound, and a sentence for all else that is no padding.

    Raises:
        OSError: The file cannot be read.
    """
    nbytes = file.stat().st_size
    if nbytes < HEADER_BYTES:
        yield f"{file.name} was cut short: of {nbytes} bytes not even its own header is whole"
        return
    mapping = _mapped(file, 0, nbytes)
    end = _end_of_payloads(mapping)
    told: int | None = HEADER_BYTES  # what lies before is accounted for; None behind a payload of unknown length
    for begin, behind, wrong in _headers(mapping, end):
        yield from _gap(file.name, mapping, told, begin)
        if wrong:
            yield f"the payload at byte {begin} of {file.name}: {wrong}"
        elif behind is not None:
            yield Place(file, begin, behind)
        told = None if behind is None else max(told or 0, _next_place(behind))
    yield from _gap(file.name, mapping, told, end)


def _headers(mapping: mmap.mmap, end: int) -> Iterator[tuple[int, int | None, str]]:
    """Yield where a payload with a sound header begins, where it ends if that is known, and why it is none to read.

    Behind one that is not whole the next may begin earlier than it says: a part of the file may be missing.
    """
    view = memoryview(mapping)
    at = HEADER_BYTES
    while (at := _next_magic(mapping, at, end)) < end:
        begin, at = at, at + ALIGNMENT
        try:
            behind = begin + stored_nbytes(view[begin:end])
        except IntegrityError:  # a damaged header, or bytes that look like one: a part of what is told as a gap
            continue
        except FormatError as error:
            yield begin, None, str(error)
            continue
        if behind > end:
            yield begin, end, f"it was cut short: {end - begin} of {behind - begin} bytes are there"
            continue
        if is_whole(view[begin:behind]):
            at = _next_place(behind)
        yield begin, behind, ""


def _next_magic(mapping: mmap.mmap, at: int, end: int) -> int:
    """Return the next place from `at` on that begins as payloads do, `end` when there is none."""
    while (at := mapping.find(MAGIC, at, end)) >= 0:
        if at % ALIGNMENT == 0:
            return at
        at += 1
    return end


def _gap(name: str, mapping: mmap.mmap, begin: int | None, end: int) -> Iterator[str]:
    """Say what lies between two payloads, but for zeros that are padding."""
    if begin is None or begin >= end:
        return
    zeros = not np.frombuffer(mapping, np.uint8)[begin:end].any()
    if not zeros:
        yield f"bytes {begin} to {end} of {name} hold no payload that can be told"
    elif end - begin >= ALIGNMENT:
        yield f"bytes {begin} to {end} of {name} are zeros: if a payload was there, it is lost"


def _end_of_payloads(mapping: mmap.mmap) -> int:
    footer = len(mapping) - FOOTER_BYTES
    return footer if footer >= HEADER_BYTES and mapping[footer:].startswith(MAGIC_FOOTER) else len(mapping)


def _next_place(end: int) -> int:
    return -(-end // ALIGNMENT) * ALIGNMENT


def _mapped(file: Path, begin: int, end: int) -> mmap.mmap:
    with file.open("rb") as content:
        return mmap.mmap(content.fileno(), end - begin, access=mmap.ACCESS_READ, offset=begin)
