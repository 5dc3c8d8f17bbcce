"""Putting right what a copy of DuckDB's file is damaged in, where its checksums tell enough.

A checksum is a sum without carry of a product of each word of 8 bytes, and the factor has an inverse. So for each word
there is one value with which the sum is right, and a word of which that differs in one byte explains the damage. In one
of a word's lower bytes damage changes so many bits of the sum that no other word of a block has an explanation by
chance; in a higher one, and among equal words, there are several, and nothing is done here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tensordb import files
from tensordb.catalog.blocks import (
    CHECKSUM_BYTES,
    FACTOR,
    HEADER_BYTES,
    Layout,
    checksum,
    in_use,
    is_plausible,
    is_whole,
    layout_of,
    read_block,
    read_headers,
    read_lists,
    words_of,
)

_END_OF_FIELDS = 64
"""Where the headers that take turns hold zeros from."""
_LEAST_BITS = 46
"""Bits of a sum that damage has to reach: of 2^26 bytes that a block's words may be changed in one fits by chance once
in a million blocks."""
_WORD_BYTES = 8
_INVERSE = np.uint64(pow(int(FACTOR), -1, 2**64))


class Mended(NamedTuple):
    """A byte that was changed.

    Attributes:
        block: Number of its block, -1 for a header.
    """

    block: int
    sentence: str


def mend(path: Path) -> list[Mended]:
    """Put the byte right, in each block of a file that nobody uses, that alone explains its checksum.

    Raises:
        OSError: The file cannot be read or written.
    """
    with _changing(path) as descriptor:
        layout, done = _layout(descriptor), list[Mended]()
        while layout is not None:  # until nothing changes: which are in use may be told by one that is mended first
            some = [
                Mended(block, f"block {block}: {sentence}")
                for block in in_use(layout, read_lists(descriptor, layout))
                if (sentence := _mend(descriptor, layout.offset(block), layout.block_bytes))
            ]
            if not some:
                break
            done += some
        return done


def header_candidates(path: Path) -> dict[int, list[tuple[int, int]]]:
    """Return the damaged headers of a file, with the bytes of each that explain it: where in the file, and what values.

    Raises:
        OSError: The file cannot be read.
    """
    with _opened(path, os.O_RDONLY) as descriptor:
        damaged = {index: data for index, data in enumerate(read_headers(descriptor)) if not is_whole(data)}
    return {
        index: [
            (index * HEADER_BYTES + at, right)
            for at, right in (_explanations(data) if len(data) == HEADER_BYTES else ())
            if _could_be(index, data[:at] + bytes([right]) + data[at + 1 :])
        ]
        for index, data in damaged.items()
    }


def block_candidates(path: Path, block: int) -> list[tuple[int, int]]:
    """Return the bytes of a damaged block that explain it: where in the file, and what values.

    The file's headers are to be sound. Bytes of words that are zeros are not among them.

    Raises:
        OSError: The file cannot be read.
    """
    with _opened(path, os.O_RDONLY) as descriptor:
        layout = layout_of(read_headers(descriptor))
        data = read_block(descriptor, layout, block)
        words = words_of(data)
        return [(layout.offset(block) + at, right) for at, right in _explanations(data) if words[at // _WORD_BYTES]]


def zero_candidates(path: Path) -> dict[int, list[int]]:
    """Return the damaged blocks of a file, and where words of each are one of which explains it if it is to be zero.

    Raises:
        OSError: The file cannot be read.
    """
    with _opened(path, os.O_RDONLY) as descriptor:
        layout = _layout(descriptor)
        if layout is None:
            return {}
        used = in_use(layout, read_lists(descriptor, layout))
        damaged = ((block, data) for block in used if not is_whole(data := read_block(descriptor, layout, block)))
        return {
            block: [layout.offset(block) + at for at in _wrong_zeros(data)]
            for block, data in damaged
            if len(data) == layout.block_bytes
        }


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
    if len(found) != 1 or _bits_reached(data) < _LEAST_BITS:
        return None
    position, right = found[0]
    files.write_at(descriptor, bytes([right]), offset + position)
    return f"byte {offset + position} was {data[position]:#04x}, and by the checksum is {right:#04x}"


def _bits_reached(data: bytes) -> int:
    """Return how many bits there are from the lowest one that is wrong in the checksum."""
    missing = _missing(words_of(data))
    return 65 - (missing & -missing).bit_length()


def _could_be(index: int, header: bytes) -> bool:
    """Whether a header could be this: the first one holds text, numbers of many bits and zeros."""
    if index == 0:
        return all(word.bit_count() > 1 for word in words_of(header).tolist() if word)
    return not any(header[_END_OF_FIELDS:]) and is_plausible(header)


def _wrong_zeros(data: bytes) -> list[int]:
    """Return where the words are each of which, made a zero, makes the checksum right."""
    words = words_of(data)
    value = _missing(words) * int(_INVERSE) % 2**64
    return (np.nonzero(words[1:] == value)[0] * _WORD_BYTES + CHECKSUM_BYTES).tolist() if value else []


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
