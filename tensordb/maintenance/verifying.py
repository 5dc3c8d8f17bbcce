"""Reading every stored byte back, past every cache, and saying what is damaged.

Invariants: what cannot be read here but may be sound (see `judging`) is no damage; nothing about one payload keeps the
others from being looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain

import duckdb

from tensordb.catalog import (
    checkpoint_documents,
    checkpoint_tensors,
    checkpoints,
    consistency,
    damage,
    datasets,
    records,
    schema,
    weights,
)
from tensordb.catalog.checkpoint_documents import DocumentRow
from tensordb.catalog.checkpoint_tensors import NamedTensor
from tensordb.catalog.ids import CHECKPOINT_NONCE, generated_id
from tensordb.catalog.records import RecordRow
from tensordb.catalog.weights import NamedWeight
from tensordb.engine import Database
from tensordb.engine.sources import OtherContentError, Source
from tensordb.errors import DatasetNotFoundError
from tensordb.maintenance.judging import error_in, is_damage, said_of, tried
from tensordb.maintenance.marking import Findings
from tensordb.maintenance.reports import DamagedPage, DamagedRecord, DamagedTensor, DamagedWeight, VerifyReport
from tensordb.maintenance.surrounding import damaged_surroundings

_OBJECTS_AT_ONCE = 256
_DOCUMENTS_AT_ONCE = 256


def verify(db: Database, name: str | None) -> VerifyReport:
    """Verify one dataset, or for None everything."""
    read_anew(db)
    compared, contradictions = 0, list[str]()
    if name is None:
        compared = db.catalog.check_blocks()
        with db.catalog.read("reading every table of the catalog") as con:
            schema.read_everything(con)
        with db.catalog.read("holding the catalog against itself") as con:
            contradictions = consistency.contradictions(con)
    with db.catalog.read() as con:
        rows = datasets.fetch_all(con) if name is None else [db.catalog.known.dataset(con, name)]
    findings = Findings()
    count, seen, damaged = 0, 0, []
    for row in rows:
        try:
            found, objects_read, broken = _verify_dataset(db, row.name, findings)
        except DatasetNotFoundError:  # deleted meanwhile
            continue
        count, seen = count + found, seen + objects_read
        damaged += broken
    if name is not None:
        findings.mark(db)
        return VerifyReport(
            count,
            seen,
            tuple(damaged),
            damaged_segments=tuple(page.sentence for page in findings.pages),
            unreadable=tuple(findings.unreadable),
            damaged_pages=tuple(findings.pages),
        )
    around = damaged_surroundings(db)
    found, ids, tensors = _verify_checkpoints(db, None, findings)
    stored, more, broken_weights = _verify_weights(db, findings)
    findings.mark(db)
    whole = seen + len(ids | more)
    return VerifyReport(
        count,
        whole,
        tuple(damaged),
        found,
        tuple(tensors),
        stored,
        tuple(broken_weights),
        compared,
        tuple(contradictions),
        (*chain.from_iterable(around.values()), *(page.sentence for page in findings.pages)),
        unreadable=tuple(findings.unreadable),
        damaged_pages=tuple(findings.pages),
        damaged_files=tuple(around),
    )


def verify_checkpoints(db: Database, run: str | None) -> VerifyReport:
    """Verify the checkpoints of a run, or for None all of them."""
    read_anew(db)
    findings = Findings()
    found, ids, damaged = _verify_checkpoints(db, run, findings)
    findings.mark(db)
    return VerifyReport(0, len(ids), (), found, tuple(damaged), unreadable=tuple(findings.unreadable))


def read_anew(db: Database) -> None:
    """Have what is read from now on come from the files as they are, of which some may have been put back."""
    db.payloads.reopen()
    db.reader.forget()


def _verify_checkpoints(
    db: Database, run: str | None, findings: Findings
) -> tuple[int, set[bytes], list[DamagedTensor]]:
    """Return how many checkpoints there are, the objects that they name, and the tensors that are damaged."""
    with db.catalog.read() as con:
        run_id = None if run is None else checkpoints.existing_run(con, run).run_id
        named = checkpoint_tensors.named_tensors(con, run_id)
        count = checkpoints.count(con, run_id)
    damaged = [*damaged_tensors(db, named, findings), *_damaged_documents(db, run_id, findings)]
    return count, {each.object_id for each in named}, damaged


def damaged_tensors(db: Database, named: Sequence[NamedTensor], findings: Findings) -> Iterator[DamagedTensor]:
    """Yield which of these tensors of checkpoints are damaged."""
    by_object: dict[bytes, list[NamedTensor]] = {}
    for each in named:
        by_object.setdefault(each.object_id, []).append(each)
    wanted = {key: (_name_of(rows[0]), rows[0].content_id) for key, rows in by_object.items()}
    for object_id, error in _errors_among(db, wanted, checkpoint_tensors.still_named, findings):
        if findings.note(error, map(_name_of, by_object[object_id])):
            first = wanted[object_id][0]
            yield from (_damaged_tensor(each, said_of(_name_of(each), error, first)) for each in by_object[object_id])


def _damaged_documents(db: Database, run_id: int | None, findings: Findings) -> Iterator[DamagedTensor]:
    """Yield the documents that lie in the rows of checkpoints and are not what was saved."""
    last = -1
    while True:
        with db.catalog.read() as con:
            rows = checkpoint_documents.after(con, last, run_id, _DOCUMENTS_AT_ONCE)
        yield from (found for row in rows if (found := damaged_document(row, findings)) is not None)
        if len(rows) < _DOCUMENTS_AT_ONCE:
            return
        last = rows[-1].number


def damaged_document(row: DocumentRow, findings: Findings) -> DamagedTensor | None:
    """Return what is wrong with a document that lies in the row of its checkpoint."""
    name = f"the state of run {row.run!r}, step {row.step}"
    error = tried(lambda: _check_document(row))
    if error is None or not findings.note(error, [name]):
        return None
    checkpoint_id = generated_id(row.number, CHECKPOINT_NONCE)
    return DamagedTensor(row.run, row.step, checkpoint_id, "", f"{name}: {error}")


def _check_document(row: DocumentRow) -> None:
    checkpoint_documents.check(row.document, row.facts)


def _verify_weights(db: Database, findings: Findings) -> tuple[int, set[bytes], list[DamagedWeight]]:
    """Return how many weights and deltas there are, the objects that they name, and which of them are damaged."""
    with db.catalog.read() as con:
        named = weights.named_objects(con)
    return len(named), {each.object_id for each in named}, list(damaged_weights(db, named, findings))


def damaged_weights(db: Database, named: Sequence[NamedWeight], findings: Findings) -> Iterator[DamagedWeight]:
    """Yield which of these weights and deltas are damaged."""
    by_object: dict[bytes, list[NamedWeight]] = {}
    for each in named:
        by_object.setdefault(each.object_id, []).append(each)
    wanted = {key: (f"weight {rows[0].content_id.hex()}", rows[0].content_id) for key, rows in by_object.items()}
    for object_id, error in _errors_among(db, wanted, weights.still_named, findings):
        if findings.note(error, (f"weight {each.content_id.hex()}" for each in by_object[object_id])):
            for each in by_object[object_id]:
                base = None if each.base_id is None else each.base_id.hex()
                yield DamagedWeight(each.content_id.hex(), base, str(error))


def _errors_among(
    db: Database,
    wanted: Mapping[bytes, tuple[str, bytes]],
    still_named: Callable[[duckdb.DuckDBPyConnection, Sequence[bytes]], set[bytes]],
    findings: Findings,
) -> Iterator[tuple[bytes, Exception]]:
    """Yield the objects that cannot be read, of some that have these names and content ids."""
    ids = list(wanted)
    for begin in range(0, len(ids), _OBJECTS_AT_ONCE):
        names = {key: wanted[key][0] for key in ids[begin : begin + _OBJECTS_AT_ONCE]}
        with db.catalog.read() as con:
            opened = dict(db.sources.try_open(con, names))
            there = still_named(con, list(names))
        for key, source in opened.items():
            if key not in there:  # deleted meanwhile
                continue
            error = error_in(db, names[key], source, wanted[key][1])
            if error is None:
                findings.sound.add(key)
                continue
            if is_damage(error):
                findings.damaged.add(key)
            yield key, error


def _name_of(each: NamedTensor) -> str:
    return f"tensor {each.name!r} of run {each.run!r}, step {each.step}"


def _damaged_tensor(each: NamedTensor, reason: str) -> DamagedTensor:
    return DamagedTensor(each.run, each.step, generated_id(each.number, CHECKPOINT_NONCE), each.name, reason)


def _verify_dataset(db: Database, name: str, findings: Findings) -> tuple[int, int, list[DamagedRecord]]:
    with db.catalog.read() as con:
        rows = records.everything(con, db.catalog.known.dataset(con, name))
    return len(rows), len({row.source for row in rows}), damaged_records(db, name, rows, findings)


def damaged_records(db: Database, name: str, rows: Sequence[RecordRow], findings: Findings) -> list[DamagedRecord]:
    """Return which of these records of a dataset are damaged."""
    by_object: dict[bytes, list[RecordRow]] = {}
    for row in rows:
        by_object.setdefault(row.source, []).append(row)
    with db.catalog.read() as con:  # an object of this id never holds anything else, whatever becomes of it meanwhile
        contents = damage.contents(con, {row.object_id for row in rows if row.payload is None})
    damaged = []
    for sharing in by_object.values():
        content_id = contents.get(sharing[0].object_id)
        error = _error_of(db, name, sharing[0], partial(db.reader.verify, content_id=content_id))
        found = [] if error is None else _damaged_of(db, name, sharing, error, findings)
        damaged += found
        if sharing[0].payload is not None:
            continue
        if error is None:
            findings.sound.add(sharing[0].object_id)
        elif found or is_damage(error):
            findings.damaged.add(sharing[0].object_id)
    return damaged


def _error_of(
    db: Database, name: str, row: RecordRow, read: Callable[[str, RecordRow, Source], None]
) -> Exception | None:
    with db.catalog.read() as con:
        found = db.reader.find(con, row)
        source = tried(lambda: db.reader.reopen(name, row, found))
    if isinstance(source, Exception):
        return source
    return tried(lambda: read(name, row, source))  # without keeping writers waiting


def _damaged_of(
    db: Database, name: str, sharing: Sequence[RecordRow], error: Exception, findings: Findings
) -> list[DamagedRecord]:
    """Say which records of an object that is damaged, or cannot be read here, are: of a page, often only some."""
    errors = {row: _error_of(db, name, row, db.reader.verify_alone) for row in sharing}
    met = {row: each for row, each in errors.items() if each is not None}
    elsewhere = is_damage(error) and not isinstance(error, OtherContentError)
    if not met and elsewhere and sharing[0].page_row is not None:
        where = f"page {sharing[0].object_id.hex()} of dataset {name!r}, among rows that none of its records names"
        findings.pages.append(DamagedPage(name, sharing[0].object_id, f"{where}: {error.__cause__ or error}"))
        return []
    # Of a tensor alone, damage that reading it does not meet is still damage, and other content is all of it.
    met = met or dict.fromkeys(sharing, error)
    with db.catalog.read() as con:  # what was deleted meanwhile could not be found, which is no damage
        dataset = db.catalog.known.dataset(con, name)
        there = {(row.seq, row.object_id) for row in records.by_sequence(con, dataset, [row.seq for row in met])}
    first = _record_name(name, sharing[0])
    return [
        DamagedRecord(name, row.record_id, said_of(_record_name(name, row), each, first), row.seq, row.object_id.hex())
        for row, each in met.items()
        if (row.seq, row.object_id) in there and findings.note(each, [_record_name(name, row)])
    ]


def _record_name(dataset: str, row: RecordRow) -> str:
    return f"record {row.record_id!r} of dataset {dataset!r}"
