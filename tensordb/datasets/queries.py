"""SQL of the user's: conditions checked before they run, whole statements, and the overview of all datasets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import duckdb

from tensordb.catalog import datasets, documents
from tensordb.catalog.calls import check_calls
from tensordb.catalog.failures import user_sql
from tensordb.catalog.records import Selection
from tensordb.datasets.lookup import Params, check_count
from tensordb.datasets.statistics import compression_stats
from tensordb.engine import Database
from tensordb.errors import InvalidInputError, InvalidQueryError

if TYPE_CHECKING:
    import pyarrow as pa

_READS = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN, duckdb.StatementType.MULTI)
_EXPLAIN = re.compile(r"^\s*EXPLAIN\s+(ANALYZE\s+)?(\([^()]*\)\s*)?", re.IGNORECASE)


def selection(where: Any, params: Params = None, order_by: str | None = None, limit: int | None = None) -> Selection:
    """Return the arguments of a query as a Selection."""
    for text, what in ((where, "where"), (order_by, "order_by")):
        if text is not None and (not isinstance(text, str) or not text.strip()):
            raise InvalidInputError(f"{what} is {text!r}; give SQL text such as 'metadata.loss < 1', or None")
        if text is not None:
            documents.check_text(text, what)
            check_calls(text)
    if params is not None and (isinstance(params, str | bytes) or not isinstance(params, Sequence | Mapping)):
        raise InvalidInputError(f"params is {params!r}; give a sequence for ?, or a mapping for $name")
    if params and where is None and order_by is None:
        raise InvalidInputError(f"params {params!r} were given without a condition to bind them in")
    return Selection(where, params, order_by, None if limit is None else check_count(limit, "limit"))


def decoding_selection(where: Any, params: Params, order_by: str | None, limit: int | None) -> Selection:
    """Return the arguments of a query whose `where` may be a function, which selects everything at first."""
    if not callable(where):
        return selection(where, params, order_by, limit)
    if params is not None:
        raise InvalidInputError("params bind values in an SQL condition; a function takes none")
    return selection(None, None, order_by, limit)


def sql(db: Database, query: str, params: Params) -> pa.Table:
    """Run one statement that only reads."""
    if not isinstance(query, str) or not query.strip():
        raise InvalidInputError(f"query is {query!r}; give one SQL statement")
    documents.check_text(query, "query")
    check_calls(query)
    with db.catalog.read() as con, user_sql(query):
        kind = _kind_of(con, query)
        if kind == duckdb.StatementType.MULTI or (db.catalog.in_transaction and kind != duckdb.StatementType.EXPLAIN):
            # DuckDB refuses a statement that changes data, or writes a file, below the top level. MULTI is what uses
            # PIVOT, be it to read or to write.
            query = f"SELECT * FROM (\n{query.strip().rstrip(';')}\n)"
        if db.catalog.in_transaction:
            return _run(con, query, params)
        con.execute("BEGIN TRANSACTION READ ONLY")
        try:
            return _run(con, query, params)
        finally:
            con.execute("ROLLBACK")


def overview(db: Database) -> list[tuple[str, ...]]:
    """Return name, records, raw bytes, stored bytes and ratio of each dataset, as text."""
    with db.catalog.read() as con:
        names = [row.name for row in datasets.fetch_all(con)]
    rows: list[tuple[str, ...]] = []
    for name in names:
        stats = compression_stats(db, name)
        rows.append(
            (name, f"{stats.records:,}", f"{stats.original_nbytes:,}", f"{stats.stored_nbytes:,}", f"{stats.ratio:.3f}")
        )
    return rows


def _run(con: duckdb.DuckDBPyConnection, query: str, params: Params) -> pa.Table:
    return con.sql(query, params=params or None).to_arrow_table()


def _kind_of(con: duckdb.DuckDBPyConnection, query: str) -> duckdb.StatementType:
    """Return the kind of a single statement that reads; raise InvalidQueryError for any other."""
    statements = con.extract_statements(query)
    if len(statements) != 1:
        raise InvalidQueryError(f"{query!r} has {len(statements)} statements; sql() runs one")
    kind = statements[0].type
    if kind == duckdb.StatementType.EXPLAIN and not _explains_a_select(con, query):
        raise InvalidQueryError(f"{query!r} is to begin with EXPLAIN, of a SELECT; sql() only reads")
    if kind not in _READS:
        name = str(kind).rpartition(".")[2]
        raise InvalidQueryError(f"{query!r} is a {name} statement; sql() only reads, the methods of the storage write")
    return kind


def _explains_a_select(con: duckdb.DuckDBPyConnection, query: str) -> bool:
    """Tell whether an EXPLAIN is surely of a SELECT, as EXPLAIN ANALYZE runs what it explains.

    One behind a comment is not: where that ends, only DuckDB knows.
    """
    found = _EXPLAIN.match(query)
    return found is not None and _kind_of(con, query[found.end() :]) == duckdb.StatementType.SELECT
