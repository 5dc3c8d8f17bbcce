"""Making the rows anew without which nobody can tell what the others mean: of datasets, specs, runs and the format.

Each of these tables is small, so that one damaged block may take all of it. What they said stands elsewhere, too: names
of datasets in their views, types of fields in the columns of records, the format in the tables that there are, dtypes
and shapes in the payloads. Invariant: a row that is there is not changed, and what nothing else tells is told as lost.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import duckdb

from tensordb.catalog import connection, fields, schema, specs
from tensordb.catalog.failures import translated
from tensordb.catalog.fields import StructOf, quoted
from tensordb.catalog.rows import first, scalar
from tensordb.model import TensorSpec

_VIEW = re.compile(
    r".* AS SELECT COALESCE\(r\.record_id, printf\('(?P<nonce>[0-9a-f]{2})%013x', r\.seq\)\) AS record_id, .*"
    r"FROM \(tensordb\.records_(?P<number>[0-9]+) AS r INNER JOIN tensordb\.specs AS s "
    r"ON \(\(r\.spec_id = s\.spec_id\)\)\);?\s*",
    re.DOTALL,
)
"""A dataset's view as DuckDB writes it; what stands before is its name, which may hold anything."""
REMADE = frozenset({"info", "datasets", "runs"})
"""Tables whose rows `remake` makes anew."""
_MOST_TRIED = 64
"""Objects of one spec that are looked at until one can be read."""


class Sample(NamedTuple):
    """A payload whose header says what a lost spec was.

    Attributes:
        is_row: Whether the spec is that of a row of it.
        payload: The payload itself when it was inline; else it is `nbytes` from `position` of `segment`.
    """

    is_row: bool
    payload: bytes | None
    segment: int | None
    position: int | None
    nbytes: int | None


def remake(path: Path, database_id: bytes) -> list[str]:
    """Make the rows of format, datasets and runs anew that a catalog has lost, which nobody uses.

    Args:
        path: The catalog.
        database_id: What its segments say.

    Returns:
        What could not be made as it was, a sentence each.

    Raises:
        FormatError: The tables are those of a newer release.
        IntegrityError: They are those of no format.
    """
    with translated("making the catalog's tables anew"):
        con = connection.open_file(path, writable=True)
        try:
            _remake_info(con, database_id)
            return [*_remake_datasets(con), *_remake_runs(con)]
        finally:
            con.close()


def remake_specs(
    path: Path, read: Callable[[Sample], TensorSpec | None], nbytes: Callable[[TensorSpec], int]
) -> list[str]:
    """Make the specs anew that rows name, and take out the rows of which nobody can tell what they hold.

    Args:
        path: A catalog whose other tables are complete.
        read: Returns the spec of a payload's tensor, None where it cannot be read.
        nbytes: Returns the bytes of a raw tensor.

    Returns:
        What had to be taken out, a sentence for each table.
    """
    with translated("making the catalog's specs anew"):
        con = connection.open_file(path, writable=True)
        try:
            tables, found = _with_specs(con), dict[int, TensorSpec]()
            for name, columns in tables.items():
                for spec_id, sample in _samples(con, name, columns):
                    if spec_id not in found and (spec := read(sample)) is not None:
                        found[spec_id] = spec
            for spec_id, spec in found.items():
                specs.restore(con, spec_id, spec, nbytes(spec))
            return list(_without_specs(con, tables))
        finally:
            con.close()


def _remake_info(con: duckdb.DuckDBPyConnection, database_id: bytes) -> None:
    there = {name for (name,) in con.execute("SELECT name FROM tensordb.info").fetchall()}
    if "format" not in there:
        con.execute("INSERT INTO tensordb.info VALUES ('format', ?)", [str(schema.format_by_tables(con))])
    for name, value in (("database_id", database_id.hex()), ("last_write", "")):
        con.execute("INSERT OR IGNORE INTO tensordb.info VALUES (?, ?)", [name, value])


def _remake_datasets(con: duckdb.DuckDBPyConnection) -> Iterator[str]:
    there = {number for (number,) in con.execute("SELECT dataset_id FROM tensordb.datasets").fetchall()}
    named, tables = _named_by_views(con), _tables(con)
    numbers = {int(name.removeprefix("records_")) for name in tables if name.startswith("records_")}
    for number in sorted(numbers - there):
        name, nonce = named.get(number) or (_unused(con, "datasets", f"salvaged-{number}"), 0)
        _remake_dataset(con, number, name, nonce)
        for index in tables:
            if index.startswith(f"index_{number}_"):
                con.execute(f"DROP TABLE tensordb.{quoted(index)}")
        lost = "its schema, compression settings and indexes, if it had any"
        if number not in named:
            lost = f"its name, the record ids that were generated for it, {lost}"
        yield f"of dataset {name!r}: {lost}"


def _named_by_views(con: duckdb.DuckDBPyConnection) -> dict[int, tuple[str, int]]:
    """Return name and nonce of each dataset that one view alone is made for."""
    own = "database_name = current_database() AND schema_name = 'main' AND NOT internal"
    found: dict[int, list[tuple[str, int]]] = {}
    for name, text in con.execute(f"SELECT view_name, sql FROM duckdb_views() WHERE {own}").fetchall():
        if view := _VIEW.fullmatch(text):
            found.setdefault(int(view["number"]), []).append((name, int(view["nonce"], 16)))
    return {number: names[0] for number, names in found.items() if len(names) == 1}


def _remake_dataset(con: duckdb.DuckDBPyConnection, number: int, name: str, nonce: int) -> None:
    table = f"tensordb.records_{number}"
    columns = {column[0]: column[1] for column in con.execute(f"SELECT * FROM {table} LIMIT 0").description or ()}
    known = fields.of_column(columns["metadata"]) if "metadata" in columns else StructOf()
    created = scalar(con.execute(f"SELECT min(created_at) FROM {table}")) or dt.datetime.now(dt.UTC).replace(
        tzinfo=None
    )
    con.execute(
        "INSERT INTO tensordb.datasets (dataset_id, name, name_folded, created_at, nonce, fields) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        [number, name, name.casefold(), created, nonce, json.dumps(fields.to_dict(known))],
    )


def _remake_runs(con: duckdb.DuckDBPyConnection) -> Iterator[str]:
    if "checkpoints" not in _tables(con):
        return
    rows = con.execute(
        "SELECT run_id, min(created_at) FROM tensordb.checkpoints "
        "WHERE run_id NOT IN (SELECT run_id FROM tensordb.runs) GROUP BY run_id ORDER BY run_id"
    ).fetchall()
    for run_id, created in rows:
        name = _unused(con, "runs", f"salvaged-{run_id}")
        con.execute("INSERT INTO tensordb.runs VALUES (?, ?, ?)", [run_id, name, created])
        yield f"the name of a run, which is {name!r} now"


def _unused(con: duckdb.DuckDBPyConnection, table: str, name: str) -> str:
    while first(con.execute(f"SELECT 1 FROM tensordb.{table} WHERE lower(name) = ?", [name])) is not None:
        name += "-"
    return name


def _tables(con: duckdb.DuckDBPyConnection) -> list[str]:
    own = "database_name = current_database() AND schema_name = 'tensordb'"
    return [name for (name,) in con.execute(f"SELECT table_name FROM duckdb_tables() WHERE {own}").fetchall()]


def _with_specs(con: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """Return the tables whose rows name specs, with SQL for whether that is of a row of the object, and the payload."""
    plain = "false AS is_row, NULL::BLOB AS payload"
    inline = "page_row IS NOT NULL AS is_row, payload"
    named = {name: inline for name in _tables(con) if name.startswith("records_")}
    return named | {"checkpoint_tensors": plain, "weights": plain}


def _samples(con: duckdb.DuckDBPyConnection, table: str, columns: str) -> Iterator[tuple[int, Sample]]:
    """Yield some payloads of each spec that rows of a table name and that is not there, with its number."""
    rows = con.execute(
        f"""
        SELECT n.spec_id, n.is_row, n.payload, o.segment, o.position, o.stored_nbytes
        FROM (SELECT DISTINCT spec_id, object_id, {columns} FROM tensordb.{quoted(table)}
                WHERE spec_id NOT IN (SELECT spec_id FROM tensordb.specs)) n
            LEFT JOIN tensordb.objects o ON o.object_id = n.object_id
        WHERE n.payload IS NOT NULL OR o.segment IS NOT NULL
        QUALIFY row_number() OVER (PARTITION BY n.spec_id) <= {_MOST_TRIED}"""
    ).fetchall()
    return ((row[0], Sample(*row[1:])) for row in rows)


def _without_specs(con: duckdb.DuckDBPyConnection, tables: Iterable[str]) -> Iterator[str]:
    """Take out what has no spec; say how much that was."""
    for name in tables:
        gone = f"FROM tensordb.{quoted(name)} WHERE spec_id NOT IN (SELECT spec_id FROM tensordb.specs)"
        count = scalar(con.execute(f"DELETE {gone}"))
        if count and name != "checkpoint_tensors":  # a checkpoint without some of these is taken out whole, and told
            yield f"{count:,} rows of the catalog's table {name!r}, of which no payload tells dtype and shape"
