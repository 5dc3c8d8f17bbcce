"""Flipping one bit of a database after another, in forked children: DuckDB may end the process that reads damage.

A flip that changes nothing that is read must still be found by `verify`, unless it lies where bytes mean nothing:
the files of locks, blocks of the catalog that are free, bits of its log that DuckDB ignores, and in segments what no
row names.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tensordb import TensorStorage
from tensordb.catalog import blocks
from tensordb.errors import TensorDBError

from .programs import fork
from .scenarios import Contents, contents

RIGHT, REFUSED, WRONG, UNTYPED, MISSED, CRASHED = "right", "refused", "wrong", "untyped", "missed by verify", "crashed"
UNSEEN, EARLIER = "right, and not seen by verify", "as it was earlier"
_OUTCOMES = (RIGHT, REFUSED, WRONG, UNTYPED, MISSED, UNSEEN, EARLIER)
_BATCH = 64
_CATALOG, _CATALOG_HEADERS, _CATALOG_BLOCK = "catalog.duckdb", 3 * 4096, 1 << 18
_SEGMENT_HEADER, _SEGMENT_FOOTER, _ALIGNMENT = 128, 64, 64
_LOG_IDENTITY = range(9, 41)
"""Where a log names its file, in 16 numbers of up to two bytes: DuckDB takes eight bits of each, and no others."""


@dataclass(frozen=True)
class Flip:
    """A bit of a file of a database."""

    file: str
    position: int
    bit: int


def outcomes(folder: Path, flips: Sequence[Flip], earlier: Sequence[Contents] = ()) -> list[tuple[Flip, str]]:
    """Return what reading everything gave after each flip alone; the folder is left as it was.

    Args:
        folder: A database that nobody has open.
        flips: Each is tried alone.
        earlier: What the database held before, of which a damaged write-ahead log may give one.
    """
    with TensorStorage(folder, read_only=True) as db:
        expected = [contents(db), *earlier]
    means_nothing = meaningless(folder)
    found: list[tuple[Flip, str]] = []
    rest = list(flips)
    while rest:
        batch = rest[:_BATCH]
        told = _in_child(folder, batch, expected)
        for each, number in zip(batch, told, strict=False):
            unseen = _OUTCOMES[number] == UNSEEN and means_nothing(each)
            found.append((each, RIGHT if unseen else _OUTCOMES[number]))
        if len(told) < len(batch):  # the child ended in the middle
            crashed = batch[len(told)]
            _flip(folder, crashed)  # which was not taken back
            found.append((crashed, CRASHED))
        rest = rest[min(len(told) + 1, len(batch)) :]
    return found


def meaningless(folder: Path) -> Callable[[Flip], bool]:
    """Return what tells the bytes of a sound database that mean nothing."""
    free = blocks.check(folder / _CATALOG).free
    with TensorStorage(folder, read_only=True) as db:
        rows = db.sql("SELECT segment, position, stored_nbytes AS n FROM tensordb.objects").to_pylist()
    meant = {f"segments/{row['segment']:016x}.seg": {(0, _SEGMENT_HEADER)} for row in rows}
    for row in rows:  # with the padding that follows
        end = row["position"] + row["n"]
        meant[f"segments/{row['segment']:016x}.seg"].add((row["position"], end + -end % _ALIGNMENT))
    for file, spans in meant.items():
        size = (folder / file).stat().st_size
        if (folder / file).read_bytes()[-_SEGMENT_FOOTER:].startswith(b"tdb-end\n"):
            spans.add((size - _SEGMENT_FOOTER, size))

    def tell(flip: Flip) -> bool:
        if flip.file == _CATALOG:
            return (flip.position - _CATALOG_HEADERS) // _CATALOG_BLOCK in free
        if flip.file.startswith("segments/"):
            return not any(begin <= flip.position < end for begin, end in meant.get(flip.file, ()))
        if flip.file == f"{_CATALOG}.wal":
            return flip.position in _LOG_IDENTITY
        return flip.file in ("lock", "gate")

    return tell


def summary(found: Sequence[tuple[Flip, str]]) -> dict[str, int]:
    """Return how often each outcome was met."""
    return dict(Counter(outcome for _, outcome in found))


def _in_child(folder: Path, batch: Sequence[Flip], expected: Sequence[Contents]) -> list[int]:
    reading, writing = os.pipe()
    child = fork()
    if not child:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        try:
            for each in batch:
                _flip(folder, each)
                outcome = _outcome(folder, expected)
                _flip(folder, each)
                os.write(writing, struct.pack("B", _OUTCOMES.index(outcome)))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        numbers = list(told.read())
    os.waitpid(child, 0)
    return numbers


def _outcome(folder: Path, expected: Sequence[Contents]) -> str:
    try:
        with TensorStorage(folder, read_only=True, busy_timeout=5) as db:
            try:
                found = contents(db)
                if found == expected[0]:
                    return RIGHT if _found_by_verify(db) else UNSEEN
                return EARLIER if found in expected[1:] else WRONG
            except TensorDBError:
                return REFUSED if _found_by_verify(db) else MISSED
    except TensorDBError:
        return REFUSED
    except Exception:
        return UNTYPED


def _found_by_verify(db: TensorStorage) -> bool:
    try:
        return not db.verify().ok
    except TensorDBError:
        return True


def _flip(folder: Path, flip: Flip) -> None:
    descriptor = os.open(folder / flip.file, os.O_RDWR)
    try:
        (byte,) = os.pread(descriptor, 1, flip.position)
        os.pwrite(descriptor, bytes([byte ^ (1 << flip.bit)]), flip.position)
    finally:
        os.close(descriptor)
