"""Mending a catalog where its checksums leave open which byte is wrong, and reading all of it tells.

DuckDB refuses every row of a block for damage in its padding, which no row is in, and the whole file for damage in a
header. It fills what no segment of a block takes with zeros: so a word in the midst of zeros that is none, and that can
be anything without any row being another, is the damage. That is found out by reading two copies, one with the word as
it is, one with zero. Of a header the right form is the one that goes with the other headers and with which everything
can be read. The keys' own blocks are not read, and not needed: they are made anew from the rows.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb

from tensordb.catalog import connection
from tensordb.catalog.block_mending import header_candidates, padding_candidates, trust, write
from tensordb.catalog.blocks import HEADER_BYTES, check
from tensordb.catalog.failures import translated
from tensordb.catalog.fields import quoted
from tensordb.catalog.rebuilding import fresh_of, remove
from tensordb.catalog.rebuilding_apart import NoProcessError, rebuild_apart
from tensordb.errors import IntegrityError, StorageFullError, StoreError

_MOST_TRIED = 8
"""Forms of a header, and blocks, that are looked at one by one: each takes as long as writing the catalog anew."""
_ZEROS = bytes(8)
"""A word."""


def mend_headers(path: Path) -> list[str]:
    """Mend the headers of a catalog that nobody uses, without which it cannot be opened.

    Returns:
        What was mended, a sentence each.

    Raises:
        OSError: The file system refuses.
        StoreError: likewise, or for want of memory.
    """
    told: list[str] = []
    if check(path).compared:  # then all headers are sound
        return told
    for index, candidates in header_candidates(path, _first_header(path)).items():
        if len(candidates) > _MOST_TRIED:
            continue
        found = candidates if len(candidates) == 1 else _equally_readable(path, candidates)
        if found:
            position, value = found[0]
            write(path, {position: bytes([value])})
            told.append(f"header {index}: byte {position} is {value:#04x} again")
    return told


def _equally_readable(path: Path, candidates: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the forms with which everything can be read; none where they differ in what that is."""
    found = [(each, rows) for each in candidates if (rows := _rows_with(path, *each)) is not None]
    return [each for each, rows in found if all(rows == other for _, other in found)]


def mend_padding(path: Path) -> list[str]:
    """Mend damage in the padding of blocks, in a catalog that nobody uses.

    Returns:
        What was mended, a sentence each.

    Raises:
        OSError: The file system refuses.
        StoreError: likewise, or for want of memory.
    """
    places = padding_candidates(path)
    if places and not _are_padding(path, places):  # perhaps some of them are
        some = dict(sorted(places.items())[:_MOST_TRIED]) if len(places) > 1 else {}
        places = {}
        for block, place in some.items():  # that of the names of tables first, without which nothing can be read
            if _are_padding(path, {**places, block: place}):
                places[block] = place
    write(path, _zeros(places))
    return [
        f"block {block}: bytes {place} to {place + len(_ZEROS)} are padding, and zeros again"
        for block, place in sorted(places.items())
    ]


def _are_padding(path: Path, places: Mapping[int, int]) -> bool:
    """Whether every row is the same with the words at these places of blocks as they are, and with zeros."""
    with _copied(path, "as-it-is") as as_it_is, _copied(path, "with-zeros") as with_zeros:
        trust(as_it_is, places)
        write(with_zeros, _zeros(places))
        try:
            return _rows(as_it_is) == _rows(with_zeros)
        except IntegrityError:  # that cannot be told where the names of tables cannot be read
            return False


def _rows_with(path: Path, position: int, value: int) -> list[Any] | None:
    """Return all that can be read with another byte, None where that is not everything."""
    with _copied(path, "otherwise") as copy:
        write(copy, {position: bytes([value])})
        if connection.log_of(path).exists():  # it names the file that it belongs to
            shutil.copyfile(connection.log_of(path), connection.log_of(copy))
        try:
            lost, rows = _rows(copy)
        except (NoProcessError, StorageFullError):
            raise
        except (IntegrityError, StoreError):  # wrong numbers in a header look to DuckDB like an error of the system
            return None
        return None if lost else rows


def _zeros(places: Mapping[int, int]) -> dict[int, bytes]:
    return dict.fromkeys(places.values(), _ZEROS)


def _first_header(path: Path) -> bytes:
    """Return the first header of a file that this release of DuckDB's makes."""
    fresh = path.with_name(f"{path.name}.header")
    try:
        with translated("making a file to compare with"):
            connection.open_file(fresh, writable=True).close()
        with fresh.open("rb") as content:
            return content.read(HEADER_BYTES)
    finally:
        remove(fresh)


@contextlib.contextmanager
def _copied(path: Path, name: str) -> Iterator[Path]:
    copy = path.with_name(f"{path.name}.{name}")
    try:
        shutil.copyfile(path, copy)
        yield copy
    finally:
        remove(copy)
        remove(fresh_of(copy))


def _rows(path: Path) -> tuple[dict[str, int], list[Any]]:
    """Return of how many rows each table lost some, and what all tables and views are and hold.

    DuckDB reads them in another process, as it may crash over a file like this, and they are looked at in its copy.
    """
    lost = rebuild_apart(path)
    with translated("comparing two copies of the catalog"):
        con = connection.open_file(path, writable=True)
        try:
            return lost, [*_definitions(con), *_sums(con)]
        finally:
            con.close()


def _definitions(con: duckdb.DuckDBPyConnection) -> list[Any]:
    kinds = "SELECT sql FROM duckdb_tables() UNION ALL SELECT sql FROM duckdb_views() WHERE NOT internal"
    return con.execute(f"SELECT sql FROM ({kinds}) ORDER BY sql").fetchall()


def _sums(con: duckdb.DuckDBPyConnection) -> Iterator[Any]:
    """Yield the number of rows of each table, and sums over them that no two sets of rows share by chance."""
    tables = con.execute("SELECT table_name FROM duckdb_tables() WHERE schema_name = 'tensordb' ORDER BY ALL")
    for (name,) in tables.fetchall():
        each = f"SELECT count(*), bit_xor(hash(each)), sum(hash(each)) FROM tensordb.{quoted(name)} each"
        yield con.execute(each).fetchall()
