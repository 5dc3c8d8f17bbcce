"""Writing a checkpoint: its tensors and its document first, then one commit that names them all.

Invariants: payloads are durable before the commit, which holds the catalog for itself alone; what a commit relies on
(shared objects, bases, payloads that others wrote) is looked for again inside it, and where others deleted it meanwhile
nothing is committed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import duckdb
import torch

from tensordb import tensors
from tensordb.catalog import checkpoints, objects
from tensordb.catalog.checkpoints import NewCheckpoint, TensorRow
from tensordb.catalog.deltas import StoredContent
from tensordb.checkpoints.checkpoint import Checkpoint, from_row
from tensordb.checkpoints.requests import Facts, Request
from tensordb.checkpoints.storing import StoredTensor, TensorStore
from tensordb.encoding.pipeline import prepare
from tensordb.encoding.presets import get_compression_preset
from tensordb.engine import BaseGoneError, Database, Stored
from tensordb.errors import ConflictError, IntegrityError
from tensordb.payloads import Location

_ATTEMPTS = 4
_INLINE_NBYTES = 8 << 10
"""Largest document that lies in the checkpoint's row."""


class SharedGoneError(ConflictError):
    """Others deleted what was stored already; the checkpoint has to be written anew."""


def save(db: Database, request: Request) -> Checkpoint:
    """Write a checkpoint and return it once it is durable."""
    for attempt in range(1, _ATTEMPTS):
        try:
            return _save(db, request, sharing=True)
        except (BaseGoneError, SharedGoneError):
            if db.catalog.in_transaction or attempt == _ATTEMPTS:
                raise
    return _save(db, request, sharing=False)


def _save(db: Database, request: Request, *, sharing: bool) -> Checkpoint:
    with db.payloads.writing():
        stored = TensorStore(db, request.facts.run, request.configs, sharing=sharing).write(request.leaves)
        document = put_document(db, request.document)
        db.payloads.flush()
        return commit(db, request.facts, document, stored)


def put_document(db: Database, document: bytes) -> bytes | Stored:
    """Return a document, written as an object where it is large."""
    if len(document) <= _INLINE_NBYTES:
        return document
    values = torch.frombuffer(bytearray(document), dtype=torch.uint8)
    return db.writer.put_whole(prepare(values, get_compression_preset("lossless")))


def commit(db: Database, facts: Facts, document: bytes | Stored, written: Sequence[StoredTensor]) -> Checkpoint:
    """Name what was written, and return the checkpoint once it is durable.

    Args:
        db: The database, inside a `writing` block of its payloads.
        facts: What is known of the checkpoint.
        document: From `put_document`.
        written: The tensors in the order of the document's leaves, whichever processes wrote them; durable.

    Raises:
        SharedGoneError: Others deleted what was stored already.
        BaseGoneError: Others deleted what tensors were stored as differences from.
        ConflictError: The payloads of a process that ended were removed; nothing was committed.
    """
    places = _places(written)
    new = [place for place in places.values() if isinstance(place, Stored)]
    if isinstance(document, Stored):
        new.append(document)
    with db.catalog.write(f"saving a checkpoint of {facts.run!r}") as con:
        _check_written(db, new)
        ids = _name_objects(db, con, places, written, new, document)
        run = checkpoints.run_named(con, facts.run) or checkpoints.add_run(con, facts.run)
        document_nbytes = document.encoded.nbytes if isinstance(document, Stored) else len(document)
        row = NewCheckpoint(
            run_id=run.run_id,
            step=facts.step,
            epoch=facts.epoch,
            parent=checkpoints.latest(con, run.run_id),
            metrics=facts.numbers,
            metadata=facts.metadata_json,
            facts=facts.packed,
            document=None if isinstance(document, Stored) else document,
            document_id=document.encoded.object_id if isinstance(document, Stored) else None,
            tensors=len(written),
            nbytes=sum(tensors.nbytes_of(each.spec) for each in written),
            stored_nbytes=sum(map(_nbytes_of, places.values())) + document_nbytes,
            added_nbytes=sum(_nbytes_of(place) for place in places.values() if isinstance(place, Stored))
            + document_nbytes,
        )
        number = checkpoints.add(con, row, _rows(db, con, written, ids))
        return from_row(checkpoints.by_number(con, [number])[0])


def _places(written: Iterable[StoredTensor]) -> dict[bytes, Stored | StoredContent]:
    """Return one place for each content; of several the one that was there before, which adds nothing."""
    places: dict[bytes, Stored | StoredContent] = {}
    for each in written:
        if each.content_id not in places or isinstance(each.place, StoredContent):
            places[each.content_id] = each.place
    return places


def _check_written(db: Database, new: Iterable[Stored]) -> None:
    """Look for payloads again: the segments of a process that was killed are anyone's to remove until the commit."""
    ends = {place.segment: place for place in sorted((each.location for each in new if each.location), key=_end_of)}
    try:
        for location in ends.values():
            db.payloads.read(location)
    except IntegrityError as error:
        raise ConflictError(
            f"payloads of this checkpoint were removed before its commit, as can happen when a process that wrote some "
            f"of them was killed ({error}); save it again"
        ) from error


def _end_of(location: Location) -> int:
    return location.offset + location.length


def _nbytes_of(place: Stored | StoredContent) -> int:
    return place.encoded.nbytes if isinstance(place, Stored) else place.stored_nbytes


def _name_objects(
    db: Database,
    con: duckdb.DuckDBPyConnection,
    places: Mapping[bytes, Stored | StoredContent],
    written: Sequence[StoredTensor],
    new: Sequence[Stored],
    document: bytes | Stored,
) -> dict[bytes, bytes]:
    """Count the references to all objects, those that are new included; return their ids by content."""
    ids = {
        key: place.encoded.object_id if isinstance(place, Stored) else place.object_id for key, place in places.items()
    }
    refs = Counter(ids[each.content_id] for each in written)
    if isinstance(document, Stored):
        refs[document.encoded.object_id] += 1
    shared = {each: refs[each] for each in refs.keys() - {stored.encoded.object_id for stored in new}}
    if len(objects.existing(con, list(shared))) < len(shared):
        raise SharedGoneError(
            "tensors stored before were deleted by others while they were saved again; save the checkpoint anew"
        )
    objects.add_references(con, shared)
    db.writer.name(con, new, refs)
    return ids


def _rows(
    db: Database, con: duckdb.DuckDBPyConnection, written: Sequence[StoredTensor], ids: dict[bytes, bytes]
) -> list[TensorRow]:
    spec_id = db.catalog.known.spec_id
    return [
        TensorRow(
            position,
            each.name,
            ids[each.content_id],
            spec_id(con, each.spec, tensors.nbytes_of(each.spec)),
            each.norm,
        )
        for position, each in enumerate(written)
    ]
