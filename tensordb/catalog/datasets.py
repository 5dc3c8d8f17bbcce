"""SQL for the table of datasets, and for the record table and the view that each of them has."""

from __future__ import annotations

import datetime as dt
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb

from tensordb.catalog import fields, high_water, indexes
from tensordb.catalog.fields import FieldType, StructOf, quoted
from tensordb.catalog.ids import generated_id_sql
from tensordb.catalog.indexes import Index
from tensordb.catalog.rows import first, scalar
from tensordb.errors import IntegrityError
from tensordb.forks import computed_once

STATISTICS = {
    **dict.fromkeys(("min", "max", "mean", "std", "norm"), "DOUBLE"),
    **dict.fromkeys(("zeros", "non_finite"), "BIGINT"),
}
"""Fields of the column of statistics, with their SQL types."""
STATISTICS_SQL = f"STRUCT({', '.join(f'{name} {kind}' for name, kind in STATISTICS.items())})"

_COLUMNS = "dataset_id, name, nonce, schema, config, fields, created_at, indexes"


@dataclass(frozen=True)
class DatasetRow:
    """One dataset as the catalog knows it.

    Attributes:
        nonce: Number from 0 to 255 in the generated record ids.
        schema: The user's schema in JSON form, None when there is none.
        config: The dataset's own compression config in JSON form, None to follow the storage's.
        fields: Types of the metadata fields seen so far.
        indexes: On metadata fields, in the order in which they were made.
    """

    dataset_id: int
    name: str
    nonce: int
    schema: dict[str, Any] | None
    config: dict[str, Any] | None
    fields: StructOf
    created_at: dt.datetime
    indexes: tuple[Index, ...] = ()

    @computed_once
    def columns(self) -> FieldType | None:
        """Type of the metadata column, None while there is none."""
        return fields.columns(self.fields)

    @computed_once
    def columns_sql(self) -> str | None:
        """SQL type of the metadata column."""
        return fields.sql_type(self.fields)

    @property
    def table(self) -> str:
        """SQL name of the record table."""
        return f"tensordb.records_{self.dataset_id}"


def fetch(con: duckdb.DuckDBPyConnection, name: str) -> DatasetRow | None:
    """Return the dataset of this exact name."""
    row = first(con.execute(f"SELECT {_COLUMNS} FROM tensordb.datasets WHERE name = ?", [name]))
    return from_row(row) if row else None


def fetch_all(con: duckdb.DuckDBPyConnection) -> list[DatasetRow]:
    """Return every dataset, oldest first."""
    return [
        from_row(row) for row in con.execute(f"SELECT {_COLUMNS} FROM tensordb.datasets ORDER BY dataset_id").fetchall()
    ]


def spelled_like(con: duckdb.DuckDBPyConnection, name: str) -> str | None:
    """Return the name of the dataset that differs from `name` by case at most."""
    row = first(con.execute("SELECT name FROM tensordb.datasets WHERE name_folded = ?", [name.casefold()]))
    return row[0] if row else None


def create(
    con: duckdb.DuckDBPyConnection,
    name: str,
    schema: dict[str, Any] | None,
    config: dict[str, Any] | None,
    known: StructOf,
) -> DatasetRow:
    """Insert a dataset with its record table and view; `known` are metadata fields declared beforehand."""
    dataset_id = scalar(con.execute("SELECT coalesce(max(dataset_id), 0) + 1 FROM tensordb.datasets"))
    nonce = random.SystemRandom().randrange(256)
    created = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    row = DatasetRow(dataset_id, name, nonce, schema, config, known, created)
    con.execute(
        "INSERT INTO tensordb.datasets VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
        [dataset_id, name, name.casefold(), created, nonce, _dump(schema), _dump(config), _dump(fields.to_dict(known))],
    )
    struct = fields.sql_type(known)
    con.execute(f"""
        CREATE TABLE {row.table} (
            seq BIGINT PRIMARY KEY, record_id VARCHAR UNIQUE, created_at TIMESTAMP, object_id BLOB, page_row INTEGER,
            spec_id INTEGER, document BLOB USING COMPRESSION uncompressed,
            payload BLOB USING COMPRESSION uncompressed, stats {STATISTICS_SQL}
            {f", metadata {struct}" if struct else ""})""")
    create_view(con, row)
    return row


def drop(con: duckdb.DuckDBPyConnection, row: DatasetRow) -> None:
    """Delete a dataset's row, view and record table; its objects are the caller's to release first."""
    for index in row.indexes:
        indexes.drop(con, row, index)
    con.execute(f"DROP VIEW IF EXISTS main.{quoted(row.name)}")
    con.execute(f"DROP TABLE {row.table}")
    con.execute("DELETE FROM tensordb.datasets WHERE dataset_id = ?", [row.dataset_id])
    high_water.forget(con, high_water.of_dataset(row.dataset_id))


def adapt_fields(con: duckdb.DuckDBPyConnection, row: DatasetRow, wanted: StructOf) -> DatasetRow:
    """Give the record table the metadata columns that `wanted` needs; return the dataset as it is then."""
    merged = fields.widen(row.fields, wanted)
    if merged == row.fields or not isinstance(merged, StructOf):
        return row
    before, after = fields.sql_type(row.fields), fields.sql_type(merged)
    if after and not before:
        con.execute(f"ALTER TABLE {row.table} ADD COLUMN metadata {after}")
    elif before != after:
        con.execute(f"ALTER TABLE {row.table} ALTER COLUMN metadata SET DATA TYPE {after}")
    con.execute(
        "UPDATE tensordb.datasets SET fields = ? WHERE dataset_id = ?",
        [_dump(fields.to_dict(merged)), row.dataset_id],
    )
    changed = replace(row, fields=merged)
    if after and not before:
        create_view(con, changed)
    return set_indexes(con, changed, indexes.refit(con, row, changed)) if row.indexes else changed


def set_indexes(con: duckdb.DuckDBPyConnection, row: DatasetRow, changed: Sequence[Index]) -> DatasetRow:
    """Note a dataset's indexes; return the dataset as it is then."""
    if tuple(changed) == row.indexes:
        return row
    con.execute(
        "UPDATE tensordb.datasets SET indexes = ? WHERE dataset_id = ?", [indexes.to_text(changed), row.dataset_id]
    )
    return replace(row, indexes=tuple(changed))


def source(row: DatasetRow, internal: str = "", table: str | None = None) -> str:
    """Return the SELECT behind a dataset's view, with `internal` columns in front, over all records or a `table`."""
    # Every field of an untyped NULL is NULL; of a boolean it is an error, which a condition is owed.
    missing = "NULL::BOOLEAN" if internal else "NULL"
    metadata = "r.metadata" if fields.sql_type(row.fields) else missing
    record_id = f"coalesce(r.record_id, {generated_id_sql('r.seq', row.nonce)})"
    return (
        f"SELECT {internal}{record_id} AS record_id, r.created_at, s.dtype, s.shape, s.nbytes, {metadata} AS metadata, "
        f"r.stats FROM {table or row.table} r JOIN tensordb.specs s ON r.spec_id = s.spec_id"
    )


def create_view(con: duckdb.DuckDBPyConnection, row: DatasetRow) -> None:
    """Give a dataset its view, in place of the one that it has."""
    con.execute(f"CREATE OR REPLACE VIEW main.{quoted(row.name)} AS {source(row)}")


def from_row(row: tuple[Any, ...]) -> DatasetRow:
    """Return the dataset of a row of the table.

    Raises:
        IntegrityError: A column holds what none is written with.
    """
    dataset_id, name, nonce, schema, config, known, created, indexed = row
    try:
        struct = fields.from_dict(_load(known))
        if not isinstance(struct, StructOf):
            raise IntegrityError(f"its metadata is said to be {known!r:.200}, not fields")
        given, own = _mapping(schema, "schema"), _mapping(config, "compression config")
        found = indexes.from_text(indexed)
    except IntegrityError as error:
        raise IntegrityError(
            f"the catalog's row of dataset {name!r} is damaged: {error}; restore catalog.duckdb from a backup, or "
            "save what can be read with `tensordb repair PATH TARGET`"
        ) from error
    return DatasetRow(dataset_id, name, nonce, given, own, struct, created, found)


def _mapping(text: str | None, what: str) -> dict[str, Any] | None:
    value = _load(text)
    if not isinstance(value, dict | None):
        raise IntegrityError(f"its {what} is a JSON {type(value).__name__}, not an object")
    return value


def _dump(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _load(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{text!r:.200} is not JSON: {error}") from error
