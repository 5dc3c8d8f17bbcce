"""What the checksums of DuckDB's file tell of the damage in a copy of it.

A checksum is a sum without carry of a product of each word of 8 bytes, and the factor has an inverse. So for each word
there is one value with which the sum is right, and a word of which that differs in one byte explains the damage. In one
of a word's lower bytes damage changes so many bits of the sum that no other word of a block has an explanation by
chance; in a higher one, and among equal words, there are several.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tensordb import files
from tensordb.catalog.blocks import (
    CHECKSUM_BYTES,
    FACTOR,
    HEADER_BYTES,
    Layout,
    checksum,
    in_use,
    is_whole,
    layout_of,
    read_block,
    read_headers,
    read_lists,
    takes_turns,
    words_of,
)

_END_OF_FIELDS = 64
"""Where the headers that take turns hold zeros from."""
_IDENTITY = slice(124, 140)
"""Bytes of the first header that are other ones in each file, beside its checksum."""
_BYTE_BITS = 46
"""Bits of a sum that a wrong byte has to reach: of 2^26 bytes that the words of a block may be changed in, one fits by
chance in one block of a million."""
_ZERO_BITS = 28
"""Those that a word in padding has to reach: that another one, changed in the same bit, comes to the same is rarer."""
_SURROUNDING_ZEROS = 512
"""Bytes on either side of what is taken for padding: the values of columns lie closer to each other."""
_WORD_BYTES = 8
_INVERSE = np.uint64(pow(int(FACTOR), -1, 2**64))


def mend(path: Path) -> list[str]:
    """Put the byte right, in each block of a file that nobody uses, that alone explains its checksum.

    Returns:
        What was mended, a sentence each.

    Raises:
        OSError: The file cannot be read or written.
    """
    with _changing(path) as descriptor:
        layout, done = _layout(descriptor), list[str]()
        while layout is not None:  # until nothing changes: which are in use may be told by one that is mended first
            some = [
                f"block {block}: {sentence}"
                for block in in_use(layout, read_lists(descriptor, layout))
                if (sentence := _mend(descriptor, layout.offset(block), layout.block_bytes))
            ]
            if not some:
                break
            done += some
        return done


def header_candidates(path: Path, like: bytes) -> dict[int, list[tuple[int, int]]]:
    """Return the damaged headers of a file, with the bytes of each that explain it: where in the file, and what values.

    Args:
        path: The file.
        like: The first header of another file of this release of DuckDB's.

    Raises:
        OSError: The file cannot be read.
    """
    with _opened(path, os.O_RDONLY) as descriptor:
        headers, nbytes = read_headers(descriptor), os.fstat(descriptor).st_size
    if not all(len(each) == HEADER_BYTES for each in headers):
        return {}
    return {
        index: [
            (index * HEADER_BYTES + at, right)
            for at, right in _explanations(data)
            if _could_be(index, data[:at] + bytes([right]) + data[at + 1 :], headers, like, nbytes)
        ]
        for index, data in enumerate(headers)
        if not is_whole(data)
    }


def padding_candidates(path: Path) -> dict[int, int]:
    """Return the damaged blocks of a file of which a word among zeros, made a zero, is an explanation: and where it is.

    It is the damage if it is padding: but rows that were deleted may leave such a word, too.

    Raises:
        OSError: The file cannot be read.
    """
    with _opened(path, os.O_RDONLY) as descriptor:
        layout = _layout(descriptor)
        if layout is None:
            return {}
        used = in_use(layout, read_lists(descriptor, layout))
        damaged = ((block, data) for block in used if not is_whole(data := read_block(descriptor, layout, block)))
        places = {block: _lonely_word(data) for block, data in damaged if len(data) == layout.block_bytes}
    return {block: layout.offset(block) + at for block, at in places.items() if at is not None}


def write(path: Path, places: Mapping[int, bytes]) -> None:
    """Write these bytes at these places of a file.

    Raises:
        OSError: The file cannot be written.
    """
    with _changing(path) as descriptor:
        for position, data in places.items():
            files.write_at(descriptor, data, position)


def trust(path: Path, blocks: Collection[int]) -> None:
    """Give blocks of a file that nobody uses the checksum of what they hold; what is then read there may be wrong.

    The file's headers are to be sound.

    Raises:
        OSError: The file cannot be read or written.
    """
    with _changing(path) as descriptor:
        layout = layout_of(read_headers(descriptor))
        for block in blocks:
            right = int(checksum(words_of(read_block(descriptor, layout, block))[1:]))
            files.write_at(descriptor, right.to_bytes(CHECKSUM_BYTES, "little"), layout.offset(block))


def damaged_metadata(path: Path) -> list[int]:
    """Return the damaged blocks of a file that hold names of tables, without which DuckDB does not open it.

    Raises:
        OSError: The file cannot be read.
    """
    with _opened(path, os.O_RDONLY) as descriptor:
        layout = _layout(descriptor)
        lists = read_lists(descriptor, layout) if layout is not None else None
        if layout is None or lists is None:
            return []
        some = {block: read_block(descriptor, layout, block) for block in sorted(lists.metadata)}
        return [block for block, data in some.items() if len(data) == layout.block_bytes and not is_whole(data)]


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = files.open_file(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[int]:
    with _opened(path, os.O_RDWR) as descriptor:
        yield descriptor
        files.sync_file(descriptor)


def _layout(descriptor: int) -> Layout | None:
    headers = read_headers(descriptor)
    return layout_of(headers) if all(map(is_whole, headers)) else None


def _mend(descriptor: int, offset: int, nbytes: int) -> str | None:
    """Mend a block where that can be done; return what was done."""
    data = os.pread(descriptor, nbytes, offset)
    found = [] if len(data) < nbytes or is_whole(data) else _explanations(data)
    if len(found) != 1 or _bits_reached(data) < _BYTE_BITS:
        return None
    position, right = found[0]
    files.write_at(descriptor, bytes([right]), offset + position)
    return f"byte {offset + position} was {data[position]:#04x}, and by the checksum is {right:#04x}"


def _bits_reached(data: bytes) -> int:
    """Return how many bits there are from the lowest one that is wrong in the checksum."""
    missing = _missing(words_of(data))
    return 65 - (missing & -missing).bit_length()


def _could_be(index: int, header: bytes, headers: list[bytes], like: bytes, nbytes: int) -> bool:
    """Whether a header could be this: the first is like those of other files but for its identity, two take turns."""
    if index == 0:
        same = (slice(CHECKSUM_BYTES, _IDENTITY.start), slice(_IDENTITY.stop, None))
        return all(header[part] == like[part] for part in same)
    other = headers[3 - index]
    return is_whole(other) and not any(header[_END_OF_FIELDS:]) and takes_turns(header, other, nbytes)


def _lonely_word(data: bytes) -> int | None:
    """Return where the only word is that explains a checksum if it is to be zero, and lies in the midst of zeros."""
    words = words_of(data)
    value = _missing(words) * int(_INVERSE) % 2**64
    (places,) = np.nonzero(words[1:] == value)
    if len(places) != 1 or _bits_reached(data) < _ZERO_BITS or _is_null(value):
        return None
    at = int(places[0]) * _WORD_BYTES + CHECKSUM_BYTES
    begin, end = max(CHECKSUM_BYTES, at - _SURROUNDING_ZEROS), at + _WORD_BYTES + _SURROUNDING_ZEROS
    return None if any(data[begin:at]) or any(data[at + _WORD_BYTES : end]) else at


def _is_null(value: int) -> bool:
    """Whether DuckDB stores something like this in the place of NULL: the least number of some width, in some lane."""
    return value & (value - 1) == 0 and value.bit_length() % 8 == 0


def _explanations(data: bytes) -> list[tuple[int, int]]:
    """Return the bytes each of which, changed to the value beside it, makes the checksum right."""
    words = words_of(data)
    missing = np.uint64(_missing(words))
    wanted = np.concatenate([words[:1] ^ missing, ((words[1:] * FACTOR) ^ missing) * _INVERSE]).astype("<u8")
    differs = (wanted ^ words).view(np.uint8).reshape(-1, _WORD_BYTES) != 0
    (places,) = np.nonzero(differs.sum(axis=1) == 1)
    positions = places * _WORD_BYTES + differs[places].argmax(axis=1)
    return list(zip(positions.tolist(), wanted.view(np.uint8)[positions].tolist(), strict=True))


def _missing(words: np.ndarray[Any, np.dtype[np.uint64]]) -> int:
    """Return the bits in which the checksum differs from that of the words behind it."""
    return int(words[0] ^ checksum(words[1:]))
