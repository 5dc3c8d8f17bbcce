"""The blocks of DuckDB's file, each held to the checksum in front of it.

DuckDB compares a checksum when it reads a block, and of an index it reads what a key leads to: damage there would stay
unseen until that key is asked for. The layout is that of DuckDB's `storage/single_file_block_manager.cpp`: headers of
4 KB, the second and third of which take turns, then blocks; whatever begins with 8 bytes of checksum. Blocks that the
file lists as free hold anything: a process that was killed may have left half of one.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tensordb.errors import StoreError

HEADER_BYTES = 4096
HEADERS = 3
CHECKSUM_BYTES = 8
FACTOR = np.uint64(0xBF58476D1CE4E5B9)
"""By which each word of 8 bytes is multiplied before all are summed up without carry."""
_SEED = np.uint64(5381)
_NOWHERE = 2**64 - 1
_PARTS_OF_A_BLOCK = 64
"""Pieces of a block that DuckDB's own metadata is chained of, the list of free blocks among it."""
_PLACE_BITS = 56


@dataclass(frozen=True)
class Layout:
    """What the newer of the two headers that take turns says."""

    block_bytes: int
    blocks: int
    free_list: int

    def offset(self, block: int) -> int:
        """Return where a block begins in the file."""
        return HEADERS * HEADER_BYTES + block * self.block_bytes

    @property
    def part_bytes(self) -> int:
        """Bytes of a piece of metadata."""
        return (self.block_bytes - CHECKSUM_BYTES) // _PARTS_OF_A_BLOCK // 8 * 8


@dataclass(frozen=True)
class Lists:
    """What the file lists of its blocks.

    Attributes:
        free: Numbers of the blocks that hold nothing.
        metadata: Of those that hold the names of tables, and where their rows are; empty where that cannot be read.
    """

    free: frozenset[int]
    metadata: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Blocks:
    """What was compared.

    Attributes:
        compared: How many blocks are in use, whose checksums were compared; 0 when this release of DuckDB lays its
            files out in another way.
        damaged: What does not match: ``"block 3"``, ``"header 1"`` or ``"the list of free blocks"``.
        free: Numbers of the blocks that hold nothing.
    """

    compared: int = 0
    damaged: tuple[str, ...] = ()
    free: frozenset[int] = frozenset()


def check(path: Path) -> Blocks:
    """Compare the checksum of every block that is in use; nobody may write to the file meanwhile.

    The caller's process loses the lock that DuckDB holds on the file, as POSIX has it when a file is closed.

    Raises:
        StoreError: The file cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _check(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StoreError(f"The catalog {str(path)!r} cannot be read: {error.strerror}; check the disk") from error


def _check(descriptor: int) -> Blocks:
    headers = read_headers(descriptor)
    if not is_whole(headers[0]):  # DuckDB has opened the file: it is another layout
        return Blocks()
    damaged = [f"header {index}" for index in range(1, HEADERS) if not is_whole(headers[index])]
    if damaged:
        return Blocks(damaged=tuple(damaged))
    layout = layout_of(headers)
    lists = read_lists(descriptor, layout)
    used = in_use(layout, lists)
    damaged = [f"block {block}" for block in used if not is_whole(read_block(descriptor, layout, block))]
    if lists is None:
        return Blocks(len(used), tuple(damaged or ["the list of free blocks"]))
    return Blocks(len(used), tuple(damaged), lists.free)


def read_headers(descriptor: int) -> list[bytes]:
    """Return the headers of a file."""
    return [os.pread(descriptor, HEADER_BYTES, index * HEADER_BYTES) for index in range(HEADERS)]


def layout_of(headers: list[bytes]) -> Layout:
    """Read iteration, place of the metadata, place of the free list, number of blocks, size of a block."""
    newest = max(struct.unpack_from("<5Q", header, CHECKSUM_BYTES) for header in headers[1:])
    return Layout(newest[4], newest[3], newest[2])


def takes_turns(header: bytes, other: bytes, nbytes: int) -> bool:
    """Whether one of the headers that take turns goes with the other one, in a file of so many bytes."""
    mine, its = (struct.unpack_from("<7Q", each, CHECKSUM_BYTES) for each in (header, other))
    iteration, metadata, free_list, blocks, block_bytes, *_ = mine
    if abs(iteration - its[0]) != 1 or mine[4:] != its[4:] or blocks > nbytes // block_bytes:
        return False
    places = (place for place in (metadata, free_list) if place != _NOWHERE)
    return all(place % 2**_PLACE_BITS < blocks and place >> _PLACE_BITS < _PARTS_OF_A_BLOCK for place in places)


def read_lists(descriptor: int, layout: Layout) -> Lists | None:
    """Return what a file lists of its blocks, None where that cannot be read.

    The blocks that the list itself lies in never are free: a flipped bit in it would hide itself.
    """
    data, place, own = b"", layout.free_list, list[int]()
    while place != _NOWHERE:  # each piece begins with the place of the next
        block, part = place % 2**_PLACE_BITS, place >> _PLACE_BITS
        own.append(block)
        if block >= layout.blocks or part >= _PARTS_OF_A_BLOCK or len(own) > layout.blocks * _PARTS_OF_A_BLOCK:
            return None
        begin = CHECKSUM_BYTES + part * layout.part_bytes
        piece = read_block(descriptor, layout, block)[begin : begin + layout.part_bytes]
        if len(piece) < layout.part_bytes:
            return None
        (place,) = struct.unpack_from("<Q", piece)
        data += piece[8:]
    return _lists(data, own) if data else Lists(frozenset())


def _lists(data: bytes, own: list[int]) -> Lists | None:
    """Take three lists apart: of free blocks, of those that several hold with how many, of those of metadata."""
    tables, end = [], 0
    for kind in ("Q", "qI", "QQ"):
        if end + 8 > len(data):
            break
        (count,) = struct.unpack_from("<Q", data, end)
        row = struct.Struct(f"<{kind}")
        begin, end = end + 8, end + 8 + count * row.size
        if end > len(data):
            break
        tables.append([number for number, *_ in row.iter_unpack(data[begin:end])])
    if not tables:
        return None
    metadata = frozenset(tables[2]) | set(own) if len(tables) == 3 else frozenset(own)
    return Lists(frozenset(tables[0]).difference(own), metadata)


def in_use(layout: Layout, lists: Lists | None) -> list[int]:
    """Return the numbers of the blocks that are not free; all of them where that is not known."""
    return [block for block in range(layout.blocks) if lists is None or block not in lists.free]


def read_block(descriptor: int, layout: Layout, block: int) -> bytes:
    """Return a block, with its checksum."""
    return os.pread(descriptor, layout.block_bytes, layout.offset(block))


def is_whole(data: bytes) -> bool:
    """Whether bytes are what the checksum in front of them says."""
    words = words_of(data)
    return len(words) > 1 and checksum(words[1:]) == words[0]


def words_of(data: bytes) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Return bytes as words of 8, of which the first is a checksum."""
    return np.frombuffer(data[: len(data) // 8 * 8], "<u8")


def checksum(words: np.ndarray[Any, np.dtype[np.uint64]]) -> np.uint64:
    """Return DuckDB's checksum of words."""
    return np.uint64(np.bitwise_xor.reduce(words * FACTOR) ^ _SEED)
