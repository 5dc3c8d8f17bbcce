"""Creating and deleting datasets, changing and deleting records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import duckdb

from tensordb.catalog import datasets, documents, fields, objects, records
from tensordb.catalog.datasets import DatasetRow
from tensordb.catalog.records import RecordRow, Selection
from tensordb.datasets.finding import check_id, not_found
from tensordb.datasets.schema import DatasetSchema
from tensordb.encoding.presets import CompressionConfig
from tensordb.engine import Database
from tensordb.errors import AlreadyExistsError, InvalidInputError


def create_dataset(db: Database, name: str, schema: Mapping[str, Any] | None, config: CompressionConfig | None) -> None:
    """Create an empty dataset."""
    _check_name(name)
    parsed = DatasetSchema.parse(schema)
    with db.catalog.write(f"creating dataset {name!r}", keeps_records=True) as con:
        _check_free(con, name)
        row = datasets.create(
            con, name, parsed.to_dict() or None, None if config is None else config.to_dict(), parsed.columns()
        )
        db.catalog.known.remember_dataset(row)


def check_new(db: Database, name: str) -> None:
    """Raise unless a dataset of this name could be created now."""
    _check_name(name)
    with db.catalog.read() as con:
        _check_free(con, name)


def list_datasets(db: Database) -> list[str]:
    """Return the names of all datasets, oldest first."""
    with db.catalog.read() as con:
        return [row.name for row in datasets.fetch_all(con)]


def dataset_exists(db: Database, name: str) -> bool:
    """Tell whether a dataset has this exact name."""
    if not isinstance(name, str):
        return False
    with db.catalog.read() as con:
        return datasets.fetch(con, documents.check_text(name, "the dataset name")) is not None


def count(db: Database, name: str, selection: Selection) -> int:
    """Return how many records match."""
    with db.catalog.read() as con:
        return records.count(con, db.catalog.known.dataset(con, name), selection)


def delete_dataset(db: Database, name: str) -> None:
    """Delete a dataset with all its records."""
    with db.catalog.write(f"deleting dataset {name!r}") as con:
        row = db.catalog.known.dataset(con, name)
        objects.release(con, records.references(con, row))
        datasets.drop(con, row)
        db.catalog.forget()


def update_metadata(db: Database, name: str, record_id: str, metadata: Any, *, merge: bool) -> None:
    """Replace a record's metadata, or merge top-level fields into it; the payload is not touched."""
    given = documents.normalize(metadata)
    if given is None and merge:
        raise InvalidInputError("there is nothing to merge in metadata=None; give a mapping")
    with db.catalog.write(f"updating {record_id!r} in {name!r}") as con:
        row = db.catalog.known.dataset(con, name)
        found = _record(con, row, record_id)
        document = {**documents.unpack(found.document), **(given or {})} if merge else given
        DatasetSchema.of_row(row).check_metadata(document)
        row = datasets.adapt_fields(con, row, fields.struct_of(document))
        db.catalog.known.remember_dataset(row)
        records.set_document(con, row, found.seq, document)


def delete_record(db: Database, name: str, record_id: str) -> None:
    """Delete one record."""
    with db.catalog.write(f"deleting {record_id!r} from {name!r}") as con:
        row = db.catalog.known.dataset(con, name)
        _delete(db, con, row, [_record(con, row, record_id).seq])


def delete_where(db: Database, name: str, selection: Selection) -> int:
    """Delete the records that match and return how many there were."""
    if selection.where is None:
        raise InvalidInputError("delete_where needs a condition; delete_dataset deletes everything")
    with db.catalog.write(f"deleting from {name!r}") as con:
        row = db.catalog.known.dataset(con, name)
        numbers = records.matching(con, row, selection).tolist()
        if numbers:
            _delete(db, con, row, numbers)
        return len(numbers)


def _delete(db: Database, con: duckdb.DuckDBPyConnection, row: DatasetRow, numbers: Sequence[int]) -> None:
    db.catalog.known.keep_sequence(con, row, numbers)
    objects.release(con, records.delete(con, row, numbers))
    db.catalog.known.forget_inline()


def _record(con: duckdb.DuckDBPyConnection, row: DatasetRow, record_id: str) -> RecordRow:
    found = records.by_id(con, row, check_id(record_id))
    if found is None:
        raise not_found(row.name, record_id)
    return found


def _check_free(con: duckdb.DuckDBPyConnection, name: str) -> None:
    taken = datasets.spelled_like(con, name)
    if taken is not None:
        why = "" if taken == name else f" (as {taken!r}: the SQL views ignore case)"
        raise AlreadyExistsError(f"a dataset is named {name!r} already{why}; choose another name")


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise InvalidInputError(f"a dataset name is text, not {type(name).__name__}: {name!r}")
    if not name.strip() or "\0" in name:
        raise InvalidInputError(f"{name!r} cannot name a dataset: give at least one visible character, and no NUL")
    documents.check_text(name, "the dataset name")
