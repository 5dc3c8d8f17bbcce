"""Finding records: by id, by condition, in order, at random, page by page.

Every function finds rows inside one catalog block, and decodes after it, without holding the catalog.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tensordb.catalog import documents, records
from tensordb.catalog.records import RecordRow, Selection
from tensordb.datasets import cached
from tensordb.datasets.finding import check_id, find_row, find_rows
from tensordb.datasets.record import Page, Record
from tensordb.engine import Database, Located
from tensordb.errors import InvalidInputError

Where = str | Callable[[torch.Tensor, dict[str, Any]], bool] | None
Params = Sequence[Any] | Mapping[str, Any] | None

_SCAN_RECORDS = 1024
"""Records whose rows are fetched at a time while scanning."""
SCAN_NBYTES = 32 << 20
"""Decoded bytes that a scan holds at a time, and at least one record."""


def get(
    db: Database,
    name: str,
    record_id: str,
    *,
    index: Any = None,
    out: torch.Tensor | None = None,
    device: torch.device | str | None = None,
    copy: bool = True,
) -> Record:
    """Return one record, or what `index` picks of its tensor; with `copy` false a view of what is stored."""
    # What a transaction reads may never be committed: it asks the catalog.
    if (
        db.cache is not None
        and copy is True
        and (out is None or isinstance(out, torch.Tensor))
        and not db.catalog.in_own_transaction
    ):
        return cached.get(db, db.cache, name, record_id, index, out, device)
    if not isinstance(copy, bool):
        raise InvalidInputError(f"copy is {copy!r}; give True for a tensor of your own, False for a view")
    if not copy and (out is not None or device is not None):
        raise InvalidInputError("copy=False views what is stored, where it is; drop it, or out= and device=")
    if out is not None and not isinstance(out, torch.Tensor):
        raise InvalidInputError(f"out= is a {type(out).__name__}; give a tensor like the result")
    with db.catalog.read() as con:
        row = find_row(db, con, name, record_id)
        located = db.reader.locate(con, name, [row])
    if not copy:
        return _record(located, row, db.reader.view(located, index=index))
    tensor = db.reader.tensor(located, index=index, out=out)
    return _record(located, row, tensor if device is None else tensor.to(device))


def get_many(db: Database, name: str, record_ids: Sequence[str]) -> list[Record]:
    """Return records in the order asked for; an id may come more than once."""
    if isinstance(record_ids, str) or not isinstance(record_ids, Iterable):
        raise InvalidInputError(f"record_ids is {record_ids!r}; give a list of ids")
    wanted = [check_id(each) for each in record_ids]
    if db.cache is not None and wanted and isinstance(name, str) and not db.catalog.in_own_transaction:
        return cached.get_many(db, db.cache, name, wanted)
    with db.catalog.read() as con:
        found = find_rows(db, con, name, wanted)
        located = db.reader.locate(con, name, [found[each] for each in wanted])
    return records_of(db, located)


def everything(db: Database, name: str) -> list[Record]:
    """Return all records in insertion order."""
    with db.catalog.read() as con:
        located = db.reader.locate(con, name, records.everything(con, db.catalog.known.dataset(con, name)))
    return records_of(db, located)


def select(db: Database, name: str, where: Where, selection: Selection) -> list[Record]:
    """Return the records that match; payloads of others are not read unless `where` is a function."""
    if callable(where):
        return _filter(scan(db, name, Selection(order_by=selection.order_by)), where, selection.limit)
    with db.catalog.read() as con:
        located = db.reader.locate(con, name, records.select(con, db.catalog.known.dataset(con, name), selection))
    return records_of(db, located)


def scan(db: Database, name: str, selection: Selection) -> Iterator[Record]:
    """Iterate over the records that matched when the scan began, holding `SCAN_NBYTES` of decoded tensors at most.

    A record that is deleted while the scan runs is left out if it was not reached yet.
    """
    numbers = sequence(db, name, selection)  # now, so that a bad argument shows here and not at the first record
    return _scan(db, name, numbers if selection.limit is None else numbers[: selection.limit])


def _scan(db: Database, name: str, numbers: np.ndarray[Any, np.dtype[np.int64]]) -> Iterator[Record]:
    for part in parts(db, name, numbers):
        yield from records_of(db, part)


def parts(db: Database, name: str, numbers: np.ndarray[Any, np.dtype[np.int64]]) -> Iterator[Located]:
    """Yield the records of these sequence numbers in their order, as many at a time as `SCAN_NBYTES` hold decoded."""
    for start in range(0, len(numbers), _SCAN_RECORDS):
        yield from _bounded(locate(db, name, numbers[start : start + _SCAN_RECORDS]))


def sequence(db: Database, name: str, selection: Selection) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the sequence numbers of the records that match, in order."""
    with db.catalog.read() as con:
        unlimited = Selection(selection.where, selection.params, selection.order_by)
        return records.matching(con, db.catalog.known.dataset(con, name), unlimited)


def sample(db: Database, name: str, n_samples: int, seed: int | None, selection: Selection) -> list[Record]:
    """Return records drawn uniformly without replacement, in random order."""
    size = check_count(n_samples, "n_samples")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0):
        raise InvalidInputError(f"seed {seed!r} is not an int from 0; None draws anew each time")
    numbers = sequence(db, name, selection)
    drawn = np.random.default_rng(seed).choice(numbers, min(size, len(numbers)), replace=False)
    return records_of(db, locate(db, name, drawn))


def page(db: Database, name: str, offset: int, limit: int, selection: Selection) -> Page:
    """Return the page of `limit` records from `offset` on; every page costs the same."""
    begin, size = check_count(offset, "offset"), check_count(limit, "limit")
    numbers = sequence(db, name, selection)
    found = records_of(db, locate(db, name, numbers[begin : begin + size]))
    return Page(found, offset=begin, limit=size, total=len(numbers))


def check_count(value: Any, what: str) -> int:
    """Return a number from 0; raise InvalidInputError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 2**63:
        raise InvalidInputError(f"{what} is {value!r}; it must be an int from 0 to 2**63 - 1")
    return int(value)


def locate(db: Database, name: str, numbers: np.ndarray[Any, np.dtype[np.int64]]) -> Located:
    """Find the records of these sequence numbers, in their order; those that are gone are left out."""
    wanted = numbers.tolist()
    with db.catalog.read() as con:
        found = db.catalog.known.by_sequence(con, db.catalog.known.dataset(con, name), wanted)
        place = {number: position for position, number in enumerate(wanted)}
        return db.reader.locate(con, name, sorted(found, key=lambda row: place[row.seq]))


def _bounded(located: Located) -> Iterator[Located]:
    part: list[RecordRow] = []
    nbytes = 0
    for row in located.rows:
        size = located.encoding_of(row).original_nbytes
        if part and nbytes + size > SCAN_NBYTES:
            yield Located(located.dataset, part, located.sources)
            part, nbytes = [], 0
        part.append(row)
        nbytes += size
    if part:
        yield Located(located.dataset, part, located.sources)


def _filter(
    candidates: Iterator[Record], keep: Callable[[torch.Tensor, dict[str, Any]], bool], limit: int | None
) -> list[Record]:
    kept: list[Record] = []
    if limit == 0:
        return kept
    for record in candidates:
        if keep(record.tensor, record.metadata):
            kept.append(record)
            if len(kept) == limit:
                break
    return kept


def records_of(db: Database, located: Located) -> list[Record]:
    """Decode records that were located."""
    decoded = db.reader.tensors(located)
    zoned: dict[dt.datetime, dt.datetime] = {}  # records that were inserted together have one time
    return [_record(located, row, tensor, zoned) for row, tensor in zip(located.rows, decoded, strict=True)]


def _record(
    located: Located, row: RecordRow, tensor: torch.Tensor, zoned: dict[dt.datetime, dt.datetime] | None = None
) -> Record:
    created = zoned.get(row.created_at) if zoned else None
    if created is None:
        created = row.created_at.replace(tzinfo=dt.UTC)
        if zoned is not None:
            zoned[row.created_at] = created
    known = {
        "id": row.record_id,
        "dataset": located.dataset,
        "created_at": created,
        "encoding": located.encoding_of(row),
    }
    return Record.made(known, tensor, documents.unpack(row.document))
