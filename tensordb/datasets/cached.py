"""Records by their ids through the cache: a few microseconds where they are decoded, and nobody changed a record."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from tensordb import tensors
from tensordb.catalog import documents
from tensordb.datasets.finding import find_row, find_rows
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
    index: Any,
    out: torch.Tensor | None,
    device: torch.device | str | None,
) -> Record:
    """Return one record, or what `index` picks of its tensor, as `lookup.get` does; outside of transactions."""
    found = cache.find(name, record_id, index is None) if type(name) is type(record_id) is str else None
    if found is not None:
        place, decoded = found
    else:
        with db.catalog.read() as con:
            (place,) = db.reader.places(con, name, [find_row(db, con, name, record_id)])
        decoded = cache.note(name, place, whole=index is None)
    if decoded is None:
        tensor = db.reader.through(cache, name, place, known=found is not None, index=index, out=out)
        tensor = tensor if device is None else tensor.to(device)
    elif out is None and device is None and place.made is not None and place.made.clones:
        tensor = decoded.clone()
    else:
        tensor = _handed_out(decoded, out, device)
    return _record(name, place, tensor)


def get_many(db: Database, cache: TensorCache, name: str, record_ids: Sequence[str]) -> list[Record]:
    """Return records in the order asked for, all as they were at one moment; outside of transactions."""
    word, found = cache.find_many(name, record_ids)
    known = frozenset(found)
    missing = [each for each in record_ids if each not in found]
    if missing:
        with db.catalog.read() as con:
            # What was known holds beside what is read now only if nobody changed a record in between.
            if word is None or db.catalog.generation.records() != word:
                known, missing, found = frozenset(), list(record_ids), {}
            rows = find_rows(db, con, name, missing)
            asked = db.reader.places(con, name, list(rows.values()))
        cache.note_many(name, asked)
        found = {**found, **{place.row.record_id: place for place in asked}}
    places = [found[each] for each in record_ids]
    decoded = cache.decoded(places)
    rest = [place for place, tensor in zip(places, decoded, strict=True) if tensor is None]
    fresh = iter(db.reader.through_many(cache, name, rest, known) if rest else ())
    return [
        _record(name, place, next(fresh) if tensor is None else _handed_out(tensor, None, None))
        for place, tensor in zip(places, decoded, strict=True)
    ]


def _record(name: str, place: Place, tensor: torch.Tensor) -> Record:
    made: _Made = place.made or _make(name, place)
    metadata = documents.unpack(place.row.document) if made.plain is None else made.plain.copy()
    return Record.made(made.known, tensor, metadata)


def _handed_out(decoded: torch.Tensor, out: torch.Tensor | None, device: torch.device | str | None) -> torch.Tensor:
    """Return a copy of a tensor of the cache."""
    if out is not None:
        filled = fill(out, decoded)
        return filled if device is None else filled.to(device)
    if device is not None and torch.device(device).type != "cpu":
        return decoded.to(device)
    return decoded.clone() if decoded.dtype != torch.complex32 else tensors.snapshot(decoded, copy=True)


class _Made(NamedTuple):
    """What is made of a record's place once, and shared by all that is returned of it.

    Attributes:
        known: Fields of the record, of values that cannot change.
        plain: The metadata, to be copied; None if that takes more than a copy of the mapping.
        clones: Whether the tensor's own `clone` will do: of complex32 torch warns with each new one that it makes.
    """

    known: dict[str, Any]
    plain: dict[str, Any] | None
    clones: bool


def _make(name: str, place: Place) -> _Made:
    row, metadata = place.row, documents.unpack(place.row.document)
    known = {
        "id": row.record_id,
        "dataset": name,
        "created_at": row.created_at.replace(tzinfo=dt.UTC),
        "encoding": place.source.encoding,
    }
    plain = metadata if _PLAIN.issuperset(map(type, metadata.values())) else None
    made = place.made = _Made(known, plain, place.source.reader.spec.dtype != "complex32")
    return made
