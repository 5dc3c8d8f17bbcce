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

import numpy as np

from tensordb.errors import StoreError

_HEADER_BYTES = 4096
_HEADERS = 3
_CHECKSUM_BYTES = 8
_SEED = 5381
_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_NOWHERE = 2**64 - 1
_PARTS_OF_A_BLOCK = 64
"""Pieces of a block that DuckDB's own metadata is chained of, the list of free blocks among it."""
_PLACE_BITS = 56


@dataclass(frozen=True)
class _Layout:
    """What the newer of the two headers that take turns says."""

    block_bytes: int
    blocks: int
    free_list: int

    def offset(self, block: int) -> int:
        return _HEADERS * _HEADER_BYTES + block * self.block_bytes

    @property
    def part_bytes(self) -> int:
        return (self.block_bytes - _CHECKSUM_BYTES) // _PARTS_OF_A_BLOCK // 8 * 8


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
    headers = [os.pread(descriptor, _HEADER_BYTES, index * _HEADER_BYTES) for index in range(_HEADERS)]
    if not _is_whole(headers[0]):  # DuckDB has opened the file: it is another layout
        return Blocks()
    damaged = [f"header {index}" for index in range(1, _HEADERS) if not _is_whole(headers[index])]
    if damaged:
        return Blocks(damaged=tuple(damaged))
    layout = _layout(headers[1:])
    free = _free(descriptor, layout)
    used = [block for block in range(layout.blocks) if free is None or block not in free]
    damaged = [f"block {block}" for block in used if not _is_whole(_read(descriptor, layout, block))]
    if free is None:
        return Blocks(len(used), tuple(damaged or ["the list of free blocks"]))
    return Blocks(len(used), tuple(damaged), frozenset(free))


def _layout(headers: list[bytes]) -> _Layout:
    """Read iteration, place of the metadata, place of the free list, number of blocks, size of a block."""
    _, _, free_list, blocks, block_bytes = max(struct.unpack_from("<5Q", header, _CHECKSUM_BYTES) for header in headers)
    return _Layout(block_bytes, blocks, free_list)


def _free(descriptor: int, layout: _Layout) -> set[int] | None:
    """Return the numbers of the blocks that are free; None where that cannot be read.

    The blocks that the list itself lies in never are: a flipped bit in it would hide itself.
    """
    data, place, own = b"", layout.free_list, list[int]()
    while place != _NOWHERE:  # each piece begins with the place of the next
        block, part = place % 2**_PLACE_BITS, place >> _PLACE_BITS
        own.append(block)
        if block >= layout.blocks or part >= _PARTS_OF_A_BLOCK or len(own) > layout.blocks * _PARTS_OF_A_BLOCK:
            return None
        begin = _CHECKSUM_BYTES + part * layout.part_bytes
        piece = _read(descriptor, layout, block)[begin : begin + layout.part_bytes]
        if len(piece) < layout.part_bytes:
            return None
        (place,) = struct.unpack_from("<Q", piece)
        data += piece[8:]
    if not data:
        return set()
    (count,) = struct.unpack_from("<Q", data)
    return set(struct.unpack_from(f"<{count}Q", data, 8)).difference(own) if 8 * (count + 1) <= len(data) else None


def _read(descriptor: int, layout: _Layout, block: int) -> bytes:
    return os.pread(descriptor, layout.block_bytes, layout.offset(block))


def _is_whole(data: bytes) -> bool:
    """Whether bytes are what the checksum in front of them says."""
    words = np.frombuffer(data[: len(data) // 8 * 8], "<u8")
    return len(words) > 1 and int(np.bitwise_xor.reduce(words[1:] * _FACTOR)) ^ _SEED == int(words[0])
