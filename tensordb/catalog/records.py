"""SQL for the record tables: rows by id, by sequence number and by condition."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import duckdb
import numpy as np

from tensordb.catalog import documents, fields, ids, indexes
from tensordb.catalog.datasets import STATISTICS, DatasetRow, source
from tensordb.catalog.documents import Documents
from tensordb.catalog.failures import user_sql
from tensordb.catalog.rows import registered, run, scalar
from tensordb.errors import InvalidQueryError

if TYPE_CHECKING:
    import pyarrow as pa

    from tensordb.catalog.arrow import MetadataColumns

Result = TypeVar("Result")
_DENSE = 4
"""Sequence numbers that fill at least one `_DENSE`-th of their range are fetched as a range."""

_CANDIDATES = '"tensordb: candidates"'
"""In a condition, the user may ask datasets by their names: this is not one that he would give."""

RECORD_COLUMNS = "seq, record_id, created_at, object_id, page_row, spec_id, document, payload"
_INTERNAL = (
    "r.seq AS _seq, r.record_id AS _record_id, r.object_id AS _object_id, r.page_row AS _page_row, "
    "r.spec_id AS _spec_id, r.document AS _document, r.payload AS _payload, "
)
_FROM_INTERNAL = "_seq, _record_id, created_at, _object_id, _page_row, _spec_id, _document, _payload"


@dataclass(frozen=True)
class Selection:
    """Which records of a dataset, in SQL of the user's.

    Attributes:
        where: Condition over the view's columns, None for all.
        params: Values bound to ``?`` (a sequence) or ``$name`` (a mapping) in the condition.
        order_by: ORDER BY expressions, None for insertion order, which also breaks ties.
        limit: Largest number of records.
    """

    where: str | None = None
    params: Sequence[Any] | Mapping[str, Any] | None = None
    order_by: str | None = None
    limit: int | None = None


class RecordRow(NamedTuple):
    """One record as the catalog knows it.

    Attributes:
        created_at: UTC without zone.
        page_row: Row in the object, None for a whole one.
        payload: The object's payload when it lies inline, else None.
    """

    seq: int
    record_id: str
    created_at: dt.datetime
    object_id: bytes
    page_row: int | None
    spec_id: int
    document: bytes | None
    payload: bytes | None

    @property
    def source(self) -> bytes:
        """What its stored bytes are told from others by: the object id, or the bytes themselves when inline.

        Records of equal content have one object id, but when inline each its own bytes, of which some may be damaged.
        """
        return self.object_id if self.payload is None else self.payload


@dataclass(frozen=True)
class NewRecords:
    """Columns of records about to be inserted, in insertion order.

    Attributes:
        first: Sequence number of the first; the others follow.
        record_ids: The user's ids, None when they are generated from the sequence numbers.
        object_ids: The object of each record, as fixed-size bytes.
        page_rows: Row in the object, -1 for a whole object.
        spec_ids: Spec of each record's tensor.
        documents: Normalized metadata, part by part.
        packed: Stored form of each; may be left out where `prepared` has them, of a single record never.
        payload: The payload of a single record that is to be inline.
        prepared: The documents and their stored forms as Arrow columns, when they were made ahead; the documents' is
            of use if it has the dataset's types.
        statistics: Of each record's values, a row in the order of `STATISTICS`; NaN for what there is none of.
    """

    first: int
    record_ids: Sequence[str] | None
    object_ids: np.ndarray[Any, np.dtype[np.void]]
    page_rows: np.ndarray[Any, np.dtype[np.int64]]
    spec_ids: np.ndarray[Any, np.dtype[np.int64]]
    documents: Sequence[Documents]
    packed: Sequence[bytes | None]
    payload: bytes | None = None
    prepared: MetadataColumns | None = None
    statistics: np.ndarray[Any, np.dtype[np.float64]] | None = None


def insert(con: duckdb.DuckDBPyConnection, row: DatasetRow, new: NewRecords) -> None:
    """Insert records; the dataset's metadata columns must fit already."""
    created = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    struct = row.columns_sql
    if len(new.object_ids) == 1:
        _insert_one(con, row, new, created, struct)
    else:
        _insert_many(con, row, new, created, struct)
    indexes.add(con, row, new.first, new.first + len(new.object_ids) - 1)


def _insert_one(
    con: duckdb.DuckDBPyConnection, row: DatasetRow, new: NewRecords, created: dt.datetime, struct: str | None
) -> None:
    part = new.documents[0]
    document = (part if isinstance(part, list) else part.rows())[0]
    page_row = int(new.page_rows[0])
    places = [bytes(new.object_ids[0]), None if page_row < 0 else page_row, int(new.spec_ids[0])]
    record_id = None if new.record_ids is None else new.record_ids[0]
    values: list[Any] = [new.first, record_id, created, *places, new.packed[0], new.payload]
    statistics = "NULL"
    if new.statistics is not None:
        values += [None if value != value else value for value in new.statistics[0].tolist()]
        statistics = f"row({', '.join('?' * len(STATISTICS))})"
    if row.columns is not None:
        values.append(fields.coerce(document or None, row.columns))
    marks = ", ".join("?" * 8) + f", {statistics}" + (f", ?::{struct}" if struct else "")
    run(con, f"INSERT INTO {row.table} ({_inserted(struct)}) VALUES ({marks})", values)


def _insert_many(
    con: duckdb.DuckDBPyConnection, row: DatasetRow, new: NewRecords, created: dt.datetime, struct: str | None
) -> None:
    from tensordb.catalog import arrow  # loading pyarrow takes longer than all the rest of tensordb

    with registered(con, "incoming_records", arrow.table_of(new, row.columns)):
        con.execute(
            f"INSERT INTO {row.table} ({_inserted(struct)}) SELECT seq, record_id, ?, object_id, page_row, spec_id, "
            f"document, NULL, stats{', metadata' if struct else ''} FROM incoming_records",
            [created],
        )


def _inserted(struct: str | None) -> str:
    # By name: a table made by an earlier release has its columns in another order.
    return f"{RECORD_COLUMNS}, stats{', metadata' if struct else ''}"


def last_sequence(con: duckdb.DuckDBPyConnection, row: DatasetRow) -> int | None:
    """Return the largest sequence number of a dataset, None when it is empty."""
    number: int | None = scalar(con.execute(f"SELECT max(seq) FROM {row.table}"))
    return number


def by_id(con: duckdb.DuckDBPyConnection, row: DatasetRow, record_id: str) -> RecordRow | None:
    """Return one record."""
    return by_ids(con, row, [record_id]).get(record_id)


def by_ids(con: duckdb.DuckDBPyConnection, row: DatasetRow, record_ids: Sequence[str]) -> dict[str, RecordRow]:
    """Return the records of many ids; ids that no record has are left out."""
    numbers = [number for each in record_ids if (number := ids.sequence_of(each, row.nonce)) is not None]
    # A record with an id of the user's does not go by the one that its number would have given.
    asked = set(record_ids)
    found = {each.record_id: each for each in by_sequence(con, row, numbers) if each.record_id in asked}
    rest = [each for each in record_ids if each not in found]
    if rest:
        found.update((each.record_id, each) for each in _where_in(con, row, "record_id", "VARCHAR", rest))
    return found


def by_sequence(con: duckdb.DuckDBPyConnection, row: DatasetRow, numbers: Sequence[int]) -> list[RecordRow]:
    """Return the records of these sequence numbers, in no particular order."""
    if not numbers:
        return []
    low, high = min(numbers), max(numbers)
    if len(numbers) == 1 or high - low >= _DENSE * len(numbers):
        return _where_in(con, row, "seq", "BIGINT", numbers)
    # A range is found by the statistics of the column, without a hash table.
    text = f"SELECT {RECORD_COLUMNS} FROM {row.table} WHERE seq BETWEEN ? AND ?"
    found = rows_of(row, con.execute(text, [low, high]).fetchall())
    wanted = set(numbers)
    return [each for each in found if each.seq in wanted]


def _where_in(
    con: duckdb.DuckDBPyConnection, row: DatasetRow, column: str, kind: str, values: Sequence[Any]
) -> list[RecordRow]:
    text = f"SELECT {RECORD_COLUMNS} FROM {row.table} WHERE {column}"
    if len(values) == 1:
        return rows_of(row, run(con, f"{text} = ?", [values[0]]).fetchall())
    return rows_of(row, con.execute(f"{text} IN (SELECT unnest(?::{kind}[]))", [list(values)]).fetchall())


def rows_of(row: DatasetRow, found: Iterable[tuple[Any, ...]]) -> list[RecordRow]:
    """Return rows of a record table with the ids that are not stored."""
    nonce = row.nonce
    return [
        RecordRow(seq, ids.generated_id(seq, nonce) if record_id is None else record_id, *rest)
        for seq, record_id, *rest in found
    ]


def everything(con: duckdb.DuckDBPyConnection, row: DatasetRow) -> list[RecordRow]:
    """Return all records of a dataset in insertion order."""
    return rows_of(row, con.execute(f"SELECT {RECORD_COLUMNS} FROM {row.table} ORDER BY seq").fetchall())


def select(con: duckdb.DuckDBPyConnection, row: DatasetRow, selection: Selection) -> list[RecordRow]:
    """Return the records that a condition of the user's matches, in his order or else of insertion."""
    return rows_of(row, _run(con, row, _FROM_INTERNAL, selection, lambda result: result.fetchall()))


def matching(
    con: duckdb.DuckDBPyConnection, row: DatasetRow, selection: Selection
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the sequence numbers of the records that match, in order: 8 bytes a record, no payloads."""
    if selection == Selection():
        numbers = np.asarray(con.execute(f"SELECT seq FROM {row.table}").fetchnumpy()["seq"], np.int64)
        # Rows lie in insertion order but for those that an update moved: mostly there is nothing to sort.
        return numbers if bool((numbers[1:] > numbers[:-1]).all()) else np.sort(numbers)
    found = _run(con, row, "_seq", selection, lambda result: result.fetchnumpy())
    return np.asarray(found["_seq"], np.int64)


def tabulate(con: duckdb.DuckDBPyConnection, row: DatasetRow, columns: str, selection: Selection) -> pa.Table:
    """Return SQL `columns` of the records that match, in order, as an Arrow table."""
    text = _statement(con, row, columns, selection, ordered=True)
    with _checked(con, row, text, selection):
        return con.sql(text, params=selection.params or None).to_arrow_table()


def matching_specs(
    con: duckdb.DuckDBPyConnection, row: DatasetRow, selection: Selection
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
    """Return the sequence numbers of the records that match, in order, and the number of each one's spec."""
    found = _run(con, row, "_seq, _spec_id", selection, lambda result: result.fetchnumpy())
    return np.asarray(found["_seq"], np.int64), np.asarray(found["_spec_id"], np.int64)


def count(con: duckdb.DuckDBPyConnection, row: DatasetRow, selection: Selection) -> int:
    """Return how many records match."""
    if selection.where is None:
        return int(scalar(con.execute(f"SELECT count(*) FROM {row.table}")))
    return int(_run(con, row, "count(*)", selection, scalar, ordered=False))


def set_document(con: duckdb.DuckDBPyConnection, row: DatasetRow, seq: int, document: dict[str, Any] | None) -> None:
    """Replace one record's metadata; the metadata columns must fit already."""
    struct = row.columns_sql
    values: list[Any] = [documents.pack(document)]
    if row.columns is not None:
        values.append(fields.coerce(document or None, row.columns))
    assignments = "document = ?" + (f", metadata = ?::{struct}" if struct else "")
    indexes.take_out(con, row, [seq])
    con.execute(f"UPDATE {row.table} SET {assignments} WHERE seq = ?", [*values, seq])
    indexes.add(con, row, seq, seq)


def delete(con: duckdb.DuckDBPyConnection, row: DatasetRow, numbers: Sequence[int]) -> dict[bytes, int]:
    """Delete records by sequence number; return how many named each object, inline ones left out."""
    indexes.take_out(con, row, numbers)
    rows = con.execute(
        f"DELETE FROM {row.table} WHERE seq IN (SELECT unnest(?::BIGINT[])) RETURNING object_id, payload IS NULL",
        [list(numbers)],
    ).fetchall()
    return dict(Counter(object_id for object_id, named in rows if named))


def references(con: duckdb.DuckDBPyConnection, row: DatasetRow) -> dict[bytes, int]:
    """Return how many records of a dataset name each object, inline ones left out."""
    text = f"SELECT object_id, count(*) FROM {row.table} WHERE payload IS NULL GROUP BY object_id"
    return dict(con.execute(text).fetchall())


def _run(
    con: duckdb.DuckDBPyConnection,
    row: DatasetRow,
    columns: str,
    selection: Selection,
    read: Callable[[duckdb.DuckDBPyConnection], Result],
    ordered: bool = True,
) -> Result:
    text = _statement(con, row, columns, selection, ordered)
    with _checked(con, row, text, selection):
        return read(con.execute(text, selection.params) if selection.params else con.execute(text))


def _statement(
    con: duckdb.DuckDBPyConnection, row: DatasetRow, columns: str, selection: Selection, ordered: bool
) -> str:
    # A comment at the end of the user's text must not swallow what follows: hence the line breaks.
    few = indexes.candidates(con, row, selection)
    # Found before anything else is looked at, or DuckDB reads the whole table for the join.
    found = "" if few is None else f"WITH {_CANDIDATES} AS MATERIALIZED ({_with_numbers(row, few)}) "
    text = f"{found}SELECT {columns} FROM ({source(row, _INTERNAL, _CANDIDATES if found else None)})"
    if selection.where is not None:
        text += f" WHERE (\n{selection.where}\n)"
    if ordered:
        text += " ORDER BY " + (f"{selection.order_by}\n, _seq" if selection.order_by is not None else "_seq")
    if selection.limit is not None:
        text += f" LIMIT {selection.limit}"
    return text


@contextmanager
def _checked(con: duckdb.DuckDBPyConnection, row: DatasetRow, text: str, selection: Selection) -> Iterator[None]:
    known = ", ".join(row.fields.fields) or "none"
    named = selection.where if selection.where is not None else selection.order_by
    with user_sql(named, f" (metadata fields of {row.name!r}: {known})"):
        if ";" in text and len(con.extract_statements(text)) != 1:
            raise InvalidQueryError(f"{named!r} cannot be used: it ends the statement that it is a part of")
        yield


def _with_numbers(row: DatasetRow, numbers: Sequence[int]) -> str:
    return f"SELECT * FROM {row.table} WHERE " + (f"seq IN ({', '.join(map(str, numbers))})" if numbers else "false")
