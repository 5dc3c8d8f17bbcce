"""One record by its id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import duckdb

from tensordb.catalog import documents
from tensordb.catalog.records import RecordRow
from tensordb.engine import Database
from tensordb.errors import InvalidInputError, TensorNotFoundError


def find_row(db: Database, con: duckdb.DuckDBPyConnection, name: str, record_id: str) -> RecordRow:
    """Return the row of a record inside a block that reads; raise TensorNotFoundError when there is none."""
    known = db.catalog.known
    row = known.records(con, known.dataset(con, name), [check_id(record_id)]).get(record_id)
    if row is None:
        raise not_found(name, record_id)
    return row


def find_rows(
    db: Database, con: duckdb.DuckDBPyConnection, name: str, record_ids: Sequence[str]
) -> dict[str, RecordRow]:
    """Return the rows of records by their ids, inside a block that reads.

    Raises:
        TensorNotFoundError: One of the ids is no record's.
    """
    row = db.catalog.known.dataset(con, name)
    found = db.catalog.known.records(con, row, record_ids) if record_ids else {}
    missing = [each for each in record_ids if each not in found]
    if missing:
        raise not_found(name, missing[0], also=len(missing) - 1)
    return found


def check_id(record_id: Any) -> str:
    """Return a record id; raise InvalidInputError unless it is text."""
    if not isinstance(record_id, str):
        raise InvalidInputError(f"a record id is text, not {type(record_id).__name__}: {record_id!r}")
    return record_id if record_id.isascii() else documents.check_text(record_id, "the record id")


def not_found(name: str, record_id: str, *, also: int = 0) -> TensorNotFoundError:
    """Return the error for an id that no record has."""
    more = f" (and {also} more of the ids)" if also else ""
    return TensorNotFoundError(f"dataset {name!r} has no record {record_id!r}{more}; query() lists those it has")
