"""Moving payloads from one place to another: out of records' rows, out of segments that are mostly dead.

A payload is checked, copied and made durable before one commit points its object to the new place. What is deleted
meanwhile stays deleted; a crash leaves a copy that nothing names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import duckdb

from tensordb.catalog import inline, objects
from tensordb.catalog.datasets import DatasetRow
from tensordb.catalog.inline import InlineRow
from tensordb.catalog.objects import NewObject, ObjectRow
from tensordb.encoding.reading import PayloadReader
from tensordb.engine.database import Database
from tensordb.engine.writer import new_object
from tensordb.errors import DatasetNotFoundError, FormatError, IntegrityError
from tensordb.payloads import Location

_MOVED_NBYTES = 64 << 20
"""Payload bytes moved by one commit."""
_INLINE_AT_ONCE = 4096


def move_inline(db: Database, names: Iterable[str]) -> tuple[int, list[str]]:
    """Move the payloads that lie in the rows of these datasets' records to segments.

    Returns:
        How many were moved, and what is wrong with each that is damaged, which stays where it is.
    """
    moved, damaged = 0, list[str]()
    for name in names:
        found: list[InlineRow] | None = None
        while found is None or len(found) == _INLINE_AT_ONCE:
            after = found[-1].seq if found else -1
            found, sound, broken = _move_inline_of(db, name, after)
            moved += sound
            damaged += broken
    return moved, damaged


def _move_inline_of(db: Database, name: str, after: int) -> tuple[list[InlineRow], int, list[str]]:
    """Move some payloads out of their records' rows; equal ones become one object."""
    store, catalog = db.payloads, db.catalog
    try:
        with catalog.read() as con:
            dataset = catalog.known.dataset(con, name)
            found = inline.rows_of(con, dataset, after=after, limit=_INLINE_AT_ONCE)
        sound, damaged = _sifted(name, found)
        if sound:
            with store.writing():
                moved = {
                    row.object_id: _object_of(db, row) for row in {each.object_id: each for each in sound}.values()
                }
                store.flush()
                with catalog.write("moving payloads") as con:
                    now = catalog.known.dataset(con, name)
                    if (now.dataset_id, now.created_at) == (dataset.dataset_id, dataset.created_at):
                        _name_taken_out(db, con, now, sound, moved)
    except DatasetNotFoundError:  # deleted meanwhile
        return [], 0, []
    db.reader.forget()
    return found, len(sound), damaged


def _sifted(name: str, found: Sequence[InlineRow]) -> tuple[list[InlineRow], list[str]]:
    """Return the records whose payloads are sound, and what is wrong with the others."""
    sound, damaged = [], []
    for row in found:
        try:
            PayloadReader(row.payload).verify()
            sound.append(row)
        except (IntegrityError, FormatError) as error:
            damaged.append(f"record {row.record_id!r} of dataset {name!r}: {error}")
    return sound, damaged


def _object_of(db: Database, row: InlineRow) -> NewObject:
    """Copy a payload to the segment being appended to, and return the object that it is there."""
    reader = PayloadReader(row.payload)
    place = db.payloads.append([row.payload])
    return new_object(row.object_id, reader.content_id(), reader.encoding, place, refs=0)


def _name_taken_out(
    db: Database,
    con: duckdb.DuckDBPyConnection,
    row: DatasetRow,
    found: Sequence[InlineRow],
    new: Mapping[bytes, NewObject],
) -> None:
    """Have records name objects, in a write block; what was deleted meanwhile is left out."""
    there = inline.take_out(con, row, [(each.seq, each.object_id) for each in found])
    refs = Counter(each.object_id for each in found if each.seq in there)
    present = objects.existing(con, list(refs))
    if present:
        objects.add_references(con, {key: refs[key] for key in present})
    objects.add(con, [new[key]._replace(refs=count) for key, count in refs.items() if key not in present])
    db.catalog.known.remember_objects(refs)
    db.catalog.known.forget_inline()


def move_segment(db: Database, segment: int) -> tuple[int, dict[bytes, str]]:
    """Move the live payloads of a segment to the one being appended to.

    Returns:
        How many were moved, and what is wrong with each object that is damaged, which stays where it is.
    """
    moved, damaged = 0, dict[bytes, str]()
    while True:
        # In one catalog block: once it ends, others may remove a segment.
        with db.catalog.read() as con:
            there = [row for row in objects.in_segment(con, segment) if row.object_id not in damaged]
            found = list(_sound(db, _up_to(there, _MOVED_NBYTES), damaged))
        if not there:
            return moved, damaged
        if found:
            moved += _move(db, found, damaged)


def _sound(
    db: Database, rows: Sequence[ObjectRow], damaged: dict[bytes, str]
) -> Iterable[tuple[ObjectRow, memoryview]]:
    """Yield the payloads that can be read; note what is wrong with the others."""
    for row in rows:
        try:
            yield row, db.payloads.read(Location(row.segment, row.position, row.stored_nbytes))
        except (IntegrityError, FormatError) as error:  # a segment of a newer release stays, too
            damaged[row.object_id] = f"object {row.object_id.hex()}: {error}"


def _move(db: Database, found: Sequence[tuple[ObjectRow, memoryview]], damaged: dict[bytes, str]) -> int:
    """Copy payloads to the segment being appended to, and point their objects there in one commit."""
    store, catalog = db.payloads, db.catalog
    sound = []
    for row, payload in found:
        try:
            PayloadReader(payload).verify()  # damage must not be copied and its source removed
            sound.append((row, payload))
        except (IntegrityError, FormatError) as error:
            damaged[row.object_id] = f"object {row.object_id.hex()}: {error}"
    if not sound:
        return 0
    with store.writing():
        places = [store.append([payload]) for _, payload in sound]
        store.flush()
        with catalog.write("moving payloads") as con:
            moved = objects.move(con, [row for row, _ in sound], [(place.segment, place.offset) for place in places])
    db.reader.forget()
    return moved


def _up_to(found: Sequence[ObjectRow], nbytes: int) -> list[ObjectRow]:
    part: list[ObjectRow] = []
    for row in found:
        if part and nbytes < row.stored_nbytes:
            break
        part.append(row)
        nbytes -= row.stored_nbytes
    return part
