"""One record by its id through the cache: a few microseconds where it is decoded, and nobody changed a record."""

from __future__ import annotations

import datetime as dt
from typing import Any

import torch

from tensordb import tensors
from tensordb.catalog import documents
from tensordb.datasets.finding import find_row
from tensordb.datasets.record import Record
from tensordb.engine import Database, Place, TensorCache
from tensordb.engine.reader import fill

_PLAIN = frozenset((str, int, float, bool, type(None)))
"""Metadata values that a copy of the mapping may share."""


def get(
    db: Database,
    cache: TensorCache,
    name: str,
    record_id: str,
    *,
    index: Any,
    out: torch.Tensor | None,
    device: torch.device | str | None,
) -> Record:
    """Return one record, or what `index` picks of its tensor, as `lookup.get` does; outside of transactions."""
    whole = index is None
    found = cache.find(name, record_id, whole=whole) if type(name) is type(record_id) is str else None
    if found is not None:
        place, decoded = found
    else:
        with db.catalog.read() as con:
            place = db.reader.place(con, name, find_row(db, con, name, record_id))
        decoded = cache.note(name, place, whole=whole)
    if decoded is None:
        tensor = db.reader.through(cache, name, place, known=found is not None, index=index, out=out)
        return _record(name, place, tensor if device is None else tensor.to(device))
    if out is not None:
        decoded = fill(out, decoded)
        return _record(name, place, decoded if device is None else decoded.to(device))
    if device is not None and torch.device(device).type != "cpu":
        return _record(name, place, decoded.to(device))
    # Of complex32 torch warns with each new one that it makes itself.
    clone = decoded.clone() if decoded.dtype != torch.complex32 else tensors.snapshot(decoded, copy=True)
    return _record(name, place, clone)


def _record(name: str, place: Place, tensor: torch.Tensor) -> Record:
    if place.made is None:
        row, metadata = place.row, documents.unpack(place.row.document)
        known = {
            "id": row.record_id,
            "dataset": name,
            "created_at": row.created_at.replace(tzinfo=dt.UTC),
            "encoding": place.source.encoding,
        }
        place.made = known, metadata if _PLAIN.issuperset(map(type, metadata.values())) else None
    known, plain = place.made
    return Record.made(known, tensor, documents.unpack(place.row.document) if plain is None else {**plain})
