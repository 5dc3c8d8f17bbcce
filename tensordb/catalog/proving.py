"""Mending a catalog where its checksums leave open which of a few bytes is wrong, and reading all of it tells.

DuckDB refuses a block also for damage in its padding, which no row is in, and a file for damage in a header. It fills
what no segment of a block takes with zeros: so a word that is not zero, and can be anything without any row being
another, is the damage. That is found out by reading two copies, one with the word as it is, one with zero. Of a header
the right form is that with which everything can be read. The keys' own blocks are not read, and not needed: they are
made anew from the rows.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensordb import files
from tensordb.catalog import connection
from tensordb.catalog.block_mending import (
    Mended,
    block_candidates,
    damaged_metadata,
    header_candidates,
    trust,
    write,
    zero_candidates,
)
from tensordb.catalog.failures import translated
from tensordb.catalog.fields import quoted
from tensordb.catalog.rebuilding_apart import rebuild_apart
from tensordb.errors import IntegrityError, StorageFullError, StoreError

_MOST_TRIED = 32
"""Explanations that are looked at one by one."""
_ZEROS = bytes(8)
"""A word."""


def mend_headers(path: Path) -> list[Mended]:
    """Mend the headers of a catalog that nobody uses, without which it cannot be opened.

    Raises:
        OSError: The file system refuses.
        StoreError: likewise.
    """
    found = {f"header {index}": places for index, places in header_candidates(path).items()}
    # Where several will do, it was in what nobody reads: text, or the header whose turn it is not.
    chosen = ((name, next(_readable(path, places), None)) for name, places in found.items())
    return [_write(path, -1, name, *place) for name, place in chosen if place is not None]


def mend_metadata(path: Path) -> list[Mended]:
    """Mend the blocks of a catalog that nobody uses where the names of tables are, and where their rows are.

    Raises:
        OSError: The file system refuses.
        StoreError: likewise.
    """
    mended = []
    for block in damaged_metadata(path):
        with _copied(path, "as-it-is") as as_it_is:
            trust(as_it_is, [block])
            if _can_be_read(as_it_is):  # then nothing tells which of several is right
                continue
        some = list(_readable(path, block_candidates(path, block)))
        if len(some) == 1:
            mended.append(_write(path, block, f"block {block}", *some[0]))
    return mended


def _readable(path: Path, candidates: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield those of these bytes with which everything can be read, unless there are more than can be tried."""
    if len(candidates) <= _MOST_TRIED:
        yield from (each for each in candidates if _can_be_read_with(path, *each))


def _write(path: Path, block: int, name: str, position: int, value: int) -> Mended:
    write(path, {position: bytes([value])})
    return Mended(block, f"{name}: byte {position} is {value:#04x} again, as its checksum says")


def _can_be_read_with(path: Path, position: int, value: int) -> bool:
    with _copied(path, "otherwise") as copy:
        write(copy, {position: bytes([value])})
        return _can_be_read(copy)


def mend_padding(path: Path) -> list[Mended]:
    """Mend damage in the padding of blocks, in a catalog that nobody uses.

    Raises:
        OSError: The file system refuses.
        StoreError: likewise.
    """
    candidates = zero_candidates(path)
    found = {block: places[0] for block, places in candidates.items() if len(places) == 1}
    if len(found) > 1 and _are_padding(path, found):
        write(path, _zeros(found))
    else:  # perhaps some of them, that of the names of tables first, without which nothing can be read
        found = {}
    for block in sorted(candidates.keys() - found.keys()):
        for place in _padding_among(path, block, candidates[block]):
            found[block] = place
            write(path, _zeros({block: place}))
    return [
        Mended(block, f"block {block}: bytes {place} to {place + len(_ZEROS)} are padding, and zeros again")
        for block, place in sorted(found.items())
    ]


def _padding_among(path: Path, block: int, places: list[int]) -> list[int]:
    """Return the one of these places that is padding; none where several may be, as only one of them is the damage."""
    found = [place for place in places[:_MOST_TRIED] if _are_padding(path, {block: place})]
    return found if len(found) == 1 and len(places) <= _MOST_TRIED else []


def _are_padding(path: Path, places: Mapping[int, int]) -> bool:
    """Whether every row is the same with the words at these places of blocks as they are, and with zeros."""
    with _copied(path, "as-it-is") as as_it_is, _copied(path, "with-zeros") as with_zeros:
        trust(as_it_is, places)
        write(with_zeros, _zeros(places))
        try:
            return _rows(as_it_is) == _rows(with_zeros)
        except IntegrityError:  # that cannot be told where the names of tables cannot be read
            return False


def _can_be_read(path: Path) -> bool:
    try:
        return not rebuild_apart(path)
    except StorageFullError:
        raise
    except (IntegrityError, StoreError):  # wrong numbers in a header look to DuckDB like an error of the system
        return False


def _zeros(places: Mapping[int, int]) -> dict[int, bytes]:
    return dict.fromkeys(places.values(), _ZEROS)


@contextlib.contextmanager
def _copied(path: Path, name: str) -> Iterator[Path]:
    copy = path.with_name(f"{path.name}.{name}")
    try:
        shutil.copyfile(path, copy)
        yield copy
    finally:
        for each in (copy, connection.log_of(copy), copy.with_name(f"{copy.name}.rebuilt")):
            with contextlib.suppress(FileNotFoundError):
                files.unlink(each)


def _rows(path: Path) -> tuple[dict[str, int], list[Any]]:
    """Return of how many rows each table lost some, and what all tables and views are and hold.

    DuckDB reads them in another process, as it may crash over a file like this, and they are looked at in its copy.
    """
    lost = rebuild_apart(path)
    with translated("comparing two copies of the catalog"):
        con = connection.open_file(path, writable=True)
        try:
            kinds = "SELECT sql FROM duckdb_tables() UNION ALL SELECT sql FROM duckdb_views() WHERE NOT internal"
            found = con.execute(f"SELECT sql FROM ({kinds}) ORDER BY sql").fetchall()
            tables = con.execute("SELECT table_name FROM duckdb_tables() WHERE schema_name = 'tensordb' ORDER BY ALL")
            for (name,) in tables.fetchall():
                each = f"SELECT count(*), bit_xor(hash(each)), sum(hash(each)) FROM tensordb.{quoted(name)} each"
                found += con.execute(each).fetchall()
            return lost, found
        finally:
            con.close()
