"""Reading a result to its end: DuckDB streams, and a connection with a half-read result refuses other work."""

from __future__ import annotations

from typing import Any

import duckdb


def first(result: duckdb.DuckDBPyConnection) -> tuple[Any, ...] | None:
    """Return the first row of a result of few rows, None when it is empty."""
    rows = result.fetchall()
    return rows[0] if rows else None


def scalar(result: duckdb.DuckDBPyConnection) -> Any:
    """Return the only value of a result."""
    return result.fetchall()[0][0]
