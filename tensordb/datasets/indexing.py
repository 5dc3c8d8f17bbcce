"""Indexes on metadata fields: made, dropped and listed; `catalog.indexes` keeps and uses them."""

from __future__ import annotations

from typing import Any

from tensordb.catalog import datasets, documents, indexes
from tensordb.catalog.datasets import DatasetRow
from tensordb.catalog.indexes import Index
from tensordb.engine import Database
from tensordb.errors import AlreadyExistsError, InvalidInputError, NotFoundError


def create_index(db: Database, name: str, field: Any) -> None:
    """Make an index on a metadata field."""
    plain = _plain(field)
    with db.catalog.write(f"making an index on {name!r}", keeps_records=True) as con:
        row = db.catalog.known.dataset(con, name)
        place = indexes.path_of(row.fields, plain)
        if place is None:
            known = ", ".join(row.fields.fields) or "none"
            raise InvalidInputError(f"dataset {name!r} has no metadata field {field!r} (there are: {known})")
        if not indexes.may_have(place[1]):
            raise InvalidInputError(
                f"metadata field {field!r} is no text, for which alone an index wins something: other values are found "
                "as fast without; leave it out"
            )
        spelled = ".".join(place[0])
        if _find(row, spelled) is not None:
            raise AlreadyExistsError(f"dataset {name!r} has an index on {field!r}; drop it first to make it anew")
        changed = datasets.set_indexes(con, row, [*row.indexes, indexes.create(con, row, spelled)])
        db.catalog.known.remember_dataset(changed)


def drop_index(db: Database, name: str, field: Any) -> None:
    """Drop the index on a metadata field."""
    plain = _plain(field)
    with db.catalog.write(f"dropping an index of {name!r}", keeps_records=True) as con:
        row = db.catalog.known.dataset(con, name)
        index = _find(row, plain)
        if index is None:
            known = ", ".join(each.field for each in row.indexes) or "none"
            raise NotFoundError(f"dataset {name!r} has no index on {field!r} (there are: {known})")
        indexes.drop(con, row, index)
        changed = datasets.set_indexes(con, row, [each for each in row.indexes if each != index])
        db.catalog.known.remember_dataset(changed)


def list_indexes(db: Database, name: str) -> list[str]:
    """Return the fields that have an index, in the order in which these were made."""
    with db.catalog.read() as con:
        return [each.field for each in db.catalog.known.dataset(con, name).indexes]


def _plain(field: Any) -> str:
    if not isinstance(field, str) or not field.strip():
        raise InvalidInputError(f"field is {field!r}; give the name of a metadata field, as 'label' or 'model.name'")
    return documents.check_text(field, "the field").removeprefix("metadata.")


def _find(row: DatasetRow, field: str) -> Index | None:
    return next((each for each in row.indexes if each.field.casefold() == field.casefold()), None)
