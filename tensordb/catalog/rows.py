"""Running statements that come again and again, and reading a result to its end.

DuckDB streams, and a connection with a half-read result refuses other work.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import duckdb

_MOST_PARSED = 256
_parsed: dict[str, duckdb.Statement] = {}
# DuckDB's binding complains on stderr about objects that outlive it.
atexit.register(_parsed.clear)


def run(con: duckdb.DuckDBPyConnection, text: str, values: Sequence[Any] = ()) -> duckdb.DuckDBPyConnection:
    """Execute a statement that is parsed only once: of a small insert, parsing is a fifth.

    What is parsed belongs to no connection and is copied by each execution, so that threads may share it.
    """
    statement = _parsed.get(text)
    if statement is None:
        (statement,) = con.extract_statements(text)
        if len(_parsed) >= _MOST_PARSED:
            _parsed.clear()
        _parsed[text] = statement
    return con.execute(statement, values) if values else con.execute(statement)


@contextmanager
def registered(con: duckdb.DuckDBPyConnection, name: str, table: Any) -> Iterator[None]:
    """Have statements of a block know an Arrow table by a name."""
    con.register(name, table)
    try:
        yield
    except BaseException:
        with suppress(duckdb.Error):  # it refuses where the transaction has ended, of which the cause is to be told
            con.unregister(name)
        raise
    con.unregister(name)


def first(result: duckdb.DuckDBPyConnection) -> tuple[Any, ...] | None:
    """Return the first row of a result of few rows, None when it is empty."""
    rows = result.fetchall()
    return rows[0] if rows else None


def scalar(result: duckdb.DuckDBPyConnection) -> Any:
    """Return the only value of a result."""
    return result.fetchall()[0][0]
