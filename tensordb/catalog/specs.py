"""SQL for the table of specs: each dtype and shape once, under a small number. Specs are never changed or deleted."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

from tensordb.catalog.rows import first, scalar
from tensordb.model import TensorSpec


def fetch(con: duckdb.DuckDBPyConnection, spec_ids: Sequence[int]) -> dict[int, TensorSpec]:
    """Return the specs of these numbers."""
    rows = con.execute(
        "SELECT spec_id, dtype, shape FROM tensordb.specs WHERE spec_id IN (SELECT unnest(?::INTEGER[]))",
        [list(spec_ids)],
    ).fetchall()
    return {spec_id: TensorSpec(dtype, tuple(shape)) for spec_id, dtype, shape in rows}


def find(con: duckdb.DuckDBPyConnection, spec: TensorSpec) -> int | None:
    """Return the number of a spec, None when it is new."""
    row = first(
        con.execute(
            "SELECT spec_id FROM tensordb.specs WHERE dtype = ? AND shape = ?::BIGINT[]", [spec.dtype, list(spec.shape)]
        )
    )
    return row[0] if row else None


def add(con: duckdb.DuckDBPyConnection, spec: TensorSpec, nbytes: int) -> int:
    """Insert a new spec and return its number."""
    number = scalar(
        con.execute(
            "INSERT INTO tensordb.specs SELECT coalesce(max(spec_id), 0) + 1, ?, ?::BIGINT[], ? FROM tensordb.specs "
            "RETURNING spec_id",
            [spec.dtype, list(spec.shape), nbytes],
        )
    )
    return int(number)


def restore(con: duckdb.DuckDBPyConnection, spec_id: int, spec: TensorSpec, nbytes: int) -> None:
    """Insert a spec under the number that rows know it by."""
    con.execute("INSERT INTO tensordb.specs VALUES (?, ?, ?, ?)", [spec_id, spec.dtype, list(spec.shape), nbytes])
