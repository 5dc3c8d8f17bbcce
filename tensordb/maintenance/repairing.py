"""Taking out of a database what is damaged beyond reading, so that everything else works again.

Invariants: nothing is removed that can be read, or that only cannot be read here (see `judging`); what is removed is
named in the report. Damage is found by `verify`, outside of any lock, and is looked at once more before its record
goes, in the write that takes it out: what was mended, replaced or deleted in between, by whomever, stays as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

import duckdb

from tensordb.catalog import checkpoint_documents, checkpoint_tensors, checkpoints, objects, records, weights
from tensordb.catalog.ids import CHECKPOINT_NONCE, sequence_of
from tensordb.engine import Database
from tensordb.errors import DatabaseBusyError, DatasetNotFoundError, StoreError
from tensordb.maintenance.marking import Findings
from tensordb.maintenance.reports import DamagedRecord, DamagedTensor, DamagedWeight, RepairReport, VerifyReport
from tensordb.maintenance.rewriting import rewrite_damaged, rewrite_pages
from tensordb.maintenance.surrounding import damaged_surroundings
from tensordb.maintenance.verifying import (
    damaged_document,
    damaged_records,
    damaged_tensors,
    damaged_weights,
    read_anew,
    verify,
)


def repair(db: Database, *, drop_checkpoints: bool, dry_run: bool) -> RepairReport:
    """Remove what is damaged; see `Maintenance.repair`."""
    found = verify(db, None)
    if not dry_run:
        return remove_damaged(db, found, drop_checkpoints=drop_checkpoints)
    broken = dict.fromkeys(each.checkpoint_id for each in found.damaged_tensors) if drop_checkpoints else ()
    return _report(found, True, found.damaged, found.damaged_tensors, broken, found.damaged_weights)


def remove_damaged(db: Database, found: VerifyReport, *, drop_checkpoints: bool) -> RepairReport:
    """Remove what was found damaged, however long ago, and still is."""
    read_anew(db)
    by_dataset: dict[str, list[DamagedRecord]] = {}
    for each in found.damaged:
        by_dataset.setdefault(each.dataset, []).append(each)
    gone = [each for name, damaged in by_dataset.items() for each in _remove_records(db, name, damaged)]
    gone_weights = _remove_weights(db, found.damaged_weights)
    tensors, broken = found.damaged_tensors, list[str]()
    if drop_checkpoints:
        tensors = tuple(_remove_checkpoints(db, tensors))
        broken = [each.checkpoint_id for each in tensors]
    db.reader.forget()
    report = _report(found, False, gone, tensors, dict.fromkeys(broken), gone_weights)
    stopped = _mend(db, found, gone)
    still = _still_damaged_beside(db, found) if found.damaged_segments else set()
    mended = tuple(each for each in found.damaged_segments if each not in still)
    return replace(report, mended_segments=mended, mending_stopped=stopped)


def _mend(db: Database, found: VerifyReport, gone: Sequence[DamagedRecord]) -> str | None:
    """Write anew what is damaged beside what is read; return what kept it from that. What went is to be told anyway."""
    if db.read_only:
        return "the database was opened with read_only=True" if found.damaged_segments else None
    try:
        rewrite_pages(db, found.damaged_pages, gone)
        rewrite_damaged(db, {*found.damaged_files, *damaged_surroundings(db)})
    except (StoreError, DatabaseBusyError) as error:
        return str(error)
    return None


def _still_damaged_beside(db: Database, found: VerifyReport) -> set[str]:
    """Return what is still damaged, now that it was to be mended."""
    still = {sentence for said in damaged_surroundings(db).values() for sentence in said}
    for name in {page.dataset for page in found.damaged_pages}:
        pages = {page.object_id: page.sentence for page in found.damaged_pages if page.dataset == name}
        findings = Findings()
        with contextlib.suppress(DatasetNotFoundError):  # deleted meanwhile
            with db.catalog.read() as con:
                rows = records.everything(con, db.catalog.known.dataset(con, name))
            damaged_records(db, name, [row for row in rows if row.object_id in pages], findings)
        still |= {pages[page.object_id] for page in findings.pages}
    return still


def _report(
    found: VerifyReport,
    dry_run: bool,
    gone: Iterable[DamagedRecord],
    tensors: Iterable[DamagedTensor],
    broken: Iterable[str],
    gone_weights: Iterable[DamagedWeight],
) -> RepairReport:
    return RepairReport(
        dry_run,
        found.records,
        found.checkpoints,
        found.weights,
        tuple(gone),
        tuple(tensors),
        tuple(broken),
        tuple(gone_weights),
        unreadable=found.unreadable,
        damaged_catalog=found.damaged_catalog,
        damaged_segments=found.damaged_segments,
    )


def _remove_records(db: Database, name: str, damaged: Sequence[DamagedRecord]) -> list[DamagedRecord]:
    """Remove the records that are the ones that were found damaged, and are damaged; return which."""
    wanted = {(each.seq, each.object_id) for each in damaged}
    try:
        with db.catalog.write(f"removing damaged records of {name!r}") as con:
            row = db.catalog.known.dataset(con, name)
            there = records.by_sequence(con, row, [seq for seq, _ in wanted])
            same = [each for each in there if (each.seq, each.object_id.hex()) in wanted]
            still = damaged_records(db, name, sorted(same), Findings())
            if still:
                numbers = [each.seq for each in still]
                db.catalog.known.keep_sequence(con, row, numbers)
                objects.release(con, records.delete(con, row, numbers))
            db.catalog.known.forget_inline()
    except DatasetNotFoundError:  # deleted meanwhile
        return []
    return still


def _remove_weights(db: Database, damaged: Sequence[DamagedWeight]) -> list[DamagedWeight]:
    """Remove the weights that were found damaged, and are damaged; return which."""
    if not damaged:
        return []
    wanted = {_key_of(each) for each in damaged}
    with db.catalog.write("removing damaged weights") as con:
        named = [each for each in weights.named_objects(con) if (each.content_id, each.base_id) in wanted]
        still = list(damaged_weights(db, named, Findings()))
        keys = {_key_of(each) for each in still}
        there = weights.numbers_of(con, [content for content, _ in keys])
        objects.release(con, weights.remove(con, [number for key, number in there.items() if key in keys]))
    return still


def _key_of(weight: DamagedWeight) -> tuple[bytes, bytes | None]:
    return bytes.fromhex(weight.hash), None if weight.base_hash is None else bytes.fromhex(weight.base_hash)


def _remove_checkpoints(db: Database, damaged: Sequence[DamagedTensor]) -> list[DamagedTensor]:
    """Remove the checkpoints of which tensors were found damaged, and are damaged; return those tensors."""
    if not damaged:
        return []
    with db.catalog.write("removing damaged checkpoints") as con:
        still = _still_damaged(db, con, damaged)
        numbers = {number for each in still if (number := _number_of(each)) is not None}
        rows = checkpoints.by_number(con, list(numbers))
        checkpoints.adopt(con, {row.number: row.parent for row in rows})
        counts = checkpoint_tensors.references(con, numbers)
        checkpoints.remove(con, list(numbers))
        objects.release(con, counts)
    return still


def _still_damaged(
    db: Database, con: duckdb.DuckDBPyConnection, damaged: Sequence[DamagedTensor]
) -> list[DamagedTensor]:
    """Return which tensors of checkpoints, or documents of them, are damaged now."""
    wanted = {(_number_of(each), each.name) for each in damaged}
    named = [each for each in checkpoint_tensors.named_tensors(con) if (each.number, each.name) in wanted]
    documents = [
        row
        for number, name in wanted
        if number is not None and not name
        for row in checkpoint_documents.after(con, number - 1, None, 1)
        if row.number == number
    ]
    broken = [found for row in documents if (found := damaged_document(row, Findings())) is not None]
    return [*damaged_tensors(db, named, Findings()), *broken]


def _number_of(tensor: DamagedTensor) -> int | None:
    return sequence_of(tensor.checkpoint_id, CHECKPOINT_NONCE)
