"""One record by its id through the cache: a few microseconds where it is decoded, and nobody changed a record."""

from __future__ import annotations

import datetime as dt
from typing import Any, NamedTuple

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
            place = db.reader.place(con, name, find_row(db, con, name, record_id))
        decoded = cache.note(name, place, whole=index is None)
    made: _Made = place.made or _make(name, place)
    if decoded is None:
        tensor = db.reader.through(cache, name, place, known=found is not None, index=index, out=out)
        tensor = tensor if device is None else tensor.to(device)
    elif out is None and device is None and made.clones:
        tensor = decoded.clone()
    else:
        tensor = _handed_out(decoded, out, device)
    metadata = documents.unpack(place.row.document) if made.plain is None else made.plain.copy()
    return Record.made(made.known, tensor, metadata)


def _handed_out(decoded: torch.Tensor, out: torch.Tensor | None, device: torch.device | str | None) -> torch.Tensor:
    """Return a copy of a tensor of the cache."""
    if out is not None:
        filled = fill(out, decoded)
        return filled if device is None else filled.to(device)
    if device is not None and torch.device(device).type != "cpu":
        return decoded.to(device)
    return tensors.snapshot(decoded, copy=True)


class _Made(NamedTuple):
    """What is made of a record's place once, and shared by all that is returned of it.

    Attributes:
        known: Fields of the record, of values that cannot change.
        plain: The metadata, to be copied; None if that takes more than a copy of the mapping.
        clones: Whether the tensor's own `clone` will do: of complex32 torch warns with each new one.
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
