"""Writing what lives in segment files to new ones, and removing the files that nothing names.

Invariant: a segment is removed only while the catalog's write lease is held and names nothing in it, and only when no
live writer holds it; a reader that mapped it keeps its map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable

from tensordb.catalog import objects
from tensordb.engine import Database
from tensordb.engine.moving import move_segment
from tensordb.engine.recoding import leave_dead_rows_out
from tensordb.errors import DatasetNotFoundError
from tensordb.maintenance.reports import DamagedPage, DamagedRecord

_SMALL_NBYTES = 16 << 20
"""Segments below this are put together: each run of a program may leave one."""


def rewrite_mostly_dead(db: Database, min_dead: float) -> tuple[int, dict[bytes, str]]:
    """Move what lives in segments that are mostly dead or small; return how much, and what is damaged."""
    with db.catalog.read() as con:
        live = objects.live_nbytes(con)
    idle = [info for info in db.payloads.segments() if not info.live and info.nbytes]
    small = [info for info in idle if info.nbytes < _SMALL_NBYTES]
    moved, damaged = 0, dict[bytes, str]()
    for info in idle:
        dead = 1 - live.get(info.id, 0) / info.nbytes
        if dead >= min_dead or (info in small and len(small) > 1):
            more, broken = move_segment(db, info.id)
            moved += more
            damaged |= broken
    return moved, damaged


def rewrite_damaged(db: Database, segments: Collection[int]) -> None:
    """Write what lives in these segments, damaged beside their payloads, to another, and remove them.

    A segment that somebody writes to, or of which a payload cannot be moved, stays.
    """
    if not segments:
        return
    db.payloads.seal()  # perhaps one of them is the one that this process would append to next
    for segment in {info.id for info in db.payloads.segments() if not info.live}.intersection(segments):
        move_segment(db, segment)
    remove_dead(db, only=segments)


def rewrite_pages(db: Database, found: Iterable[DamagedPage], gone: Iterable[DamagedRecord]) -> None:
    """Write pages anew without the rows that nothing names, where damage is among these.

    Args:
        db: The database.
        found: The pages.
        gone: Records that were deleted for their damage, of pages whose other records can be read.
    """
    pages: dict[str, set[bytes]] = {}
    for page in found:
        pages.setdefault(page.dataset, set()).add(page.object_id)
    for record in gone:
        pages.setdefault(record.dataset, set()).add(bytes.fromhex(record.object_id))
    for name, ids in pages.items():
        with contextlib.suppress(DatasetNotFoundError):  # deleted meanwhile
            leave_dead_rows_out(db, name, ids)


def remove_dead(db: Database, *, only: Collection[int] | None = None) -> int:
    """Remove the segments, or some of them, that nothing names; return how many."""
    with db.catalog.read() as con:
        live = objects.live_nbytes(con)
    if any(info.live and info.id not in live for info in db.payloads.segments()):
        db.payloads.seal()  # perhaps it is the one that this process would append to next
    with db.catalog.write("collecting garbage") as con:
        live = objects.live_nbytes(con)
        dead = [info for info in db.payloads.segments() if info.id not in live and (only is None or info.id in only)]
        return sum(db.payloads.remove(info.id) for info in dead)
