"""Holding the catalog against itself: what its tables say of each other, and whether keys lead to their rows.

DuckDB's checksums tell that a block is what was once written, not that it is the block that belongs there: after a lost
write, or with two blocks in each other's place, every one of them is right. What is looked at here is what tensordb's
own transactions keep true, so that nothing of it can be false in a sound catalog, whoever is writing.

All is asked in SQL over whole tables, within one block of reading. Only keys are looked up one by one, as DuckDB does
for `WHERE key = …`: in a large table a share of them, the newest included, as an index lies in few blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import duckdb

from tensordb.catalog import datasets, indexes
from tensordb.catalog.datasets import DatasetRow
from tensordb.catalog.fields import quoted
from tensordb.catalog.rows import first, scalar

KEYS_AT_ONCE = 1024
"""Keys looked up by a statement: with more than 2048 DuckDB reads the whole table."""
_TABLES_AT_ONCE = 64
_LOOK_UPS = 4
"""Statements that look up keys of one index, evenly taken from its table; another one takes the newest."""


class _Link(NamedTuple):
    """A column of a table that names rows of another."""

    table: str
    column: str
    owner: str
    key: str
    where: str = "true"


_LINKS = (
    _Link("checkpoints", "run_id", "runs", "run_id"),
    _Link("checkpoints", "parent", "checkpoints", "number"),
    _Link("checkpoints", "document_id", "objects", "object_id"),
    _Link("checkpoint_tensors", "number", "checkpoints", "number"),
    _Link("checkpoint_tensors", "object_id", "objects", "object_id"),
    _Link("checkpoint_tensors", "spec_id", "specs", "spec_id"),
    _Link("tags", "run_id", "runs", "run_id"),
    _Link("tags", "number", "checkpoints", "number"),
    _Link("weights", "object_id", "objects", "object_id"),
    _Link("weights", "spec_id", "specs", "spec_id"),
    _Link("weight_labels", "number", "weights", "number"),
    _Link("deltas", "object_id", "objects", "object_id"),
    _Link("deltas", "base_id", "objects", "object_id"),
)
_REFERENCES = (
    "SELECT object_id FROM tensordb.checkpoint_tensors",
    "SELECT document_id FROM tensordb.checkpoints WHERE document_id IS NOT NULL",
    "SELECT object_id FROM tensordb.weights",
    "SELECT base_id FROM tensordb.deltas",
)


def contradictions(con: duckdb.DuckDBPyConnection) -> list[str]:
    """Return what the catalog's tables contradict each other in, a sentence each; none when it is sound.

    Raises:
        IntegrityError: The row of a dataset cannot be read.
        duckdb.Error: A table cannot be read.
    """
    tables = _tables(con)
    rows = datasets.fetch_all(con)
    there = [row for row in rows if _name(row) in tables]
    found = [f"the table of the records of dataset {row.name!r} is missing" for row in rows if _name(row) not in tables]
    records = {name for name in tables if name.startswith("records_")}
    found += [f"the table {name!r} belongs to no dataset" for name in sorted(records - set(map(_name, rows)))]
    found += _missing_views(con, rows)
    filled = _filled(con, tables)
    found += _broken_keys(con, filled)
    for link in (*_LINKS, *(each for row in there for each in _links_of(row))):
        if link.table in filled:
            found += _dangling(con, link)
    found += _miscounted(con, there)
    found += _overlapping(con)
    found += [each for row in there for each in indexes.faults(con, row)]
    return found


def _tables(con: duckdb.DuckDBPyConnection) -> set[str]:
    own = "database_name = current_database() AND schema_name = 'tensordb'"
    return {name for (name,) in con.execute(f"SELECT table_name FROM duckdb_tables() WHERE {own}").fetchall()}


def _filled(con: duckdb.DuckDBPyConnection, tables: set[str]) -> set[str]:
    """Return the tables that have rows: of the others there is nothing to be asked, and each question takes time."""
    names, filled = sorted(tables), set[str]()
    for begin in range(0, len(names), _TABLES_AT_ONCE):  # planning many takes a time that grows with their square
        some = names[begin : begin + _TABLES_AT_ONCE]
        counts = (f"SELECT {number}, count(*) FROM tensordb.{quoted(name)}" for number, name in enumerate(some))
        filled |= {some[number] for number, rows in con.execute(" UNION ALL ".join(counts)).fetchall() if rows}
    return filled


def _name(row: DatasetRow) -> str:
    return row.table.partition(".")[2]


def _links_of(row: DatasetRow) -> tuple[_Link, ...]:
    return (
        _Link(_name(row), "spec_id", "specs", "spec_id"),
        _Link(_name(row), "object_id", "objects", "object_id", "payload IS NULL"),
    )


def _missing_views(con: duckdb.DuckDBPyConnection, rows: list[DatasetRow]) -> Iterator[str]:
    found = con.execute(
        "SELECT view_name FROM duckdb_views() WHERE database_name = current_database() AND schema_name = 'main'"
    )
    there = {name.casefold() for (name,) in found.fetchall()}
    for row in rows:
        if row.name.casefold() not in there:
            yield f"the view of dataset {row.name!r} is missing"


def _broken_keys(con: duckdb.DuckDBPyConnection, tables: set[str]) -> Iterator[str]:
    """Say of which of these tables rows share a key that is to be their own, have none, or are not found by it."""
    own = "WHERE database_name = current_database() AND schema_name = 'tensordb'"
    keys = con.execute(
        f"SELECT table_name, constraint_column_names, constraint_type FROM duckdb_constraints() {own} "
        "AND constraint_type IN ('PRIMARY KEY', 'UNIQUE') ORDER BY ALL"
    ).fetchall()
    columns_of = con.execute(f"SELECT table_name, column_name, data_type FROM duckdb_columns() {own}").fetchall()
    kinds = {(table, column): kind for table, column, kind in columns_of}
    for table, columns, constraint in keys:
        if table not in tables:
            continue
        rows, distinct = _counted(con, table, columns, all_have_one=constraint == "PRIMARY KEY")
        if distinct != rows:
            yield f"{rows:,} rows of the table {table!r} have {distinct:,} keys of {' and '.join(columns)}"
        elif len(columns) == 1:  # nothing is looked up by several
            found, looked_up = _looked_up(con, table, columns[0], kinds[table, columns[0]], rows)
            if found != looked_up:
                yield f"by {columns[0]} {found:,} of {looked_up:,} rows of the table {table!r} are found"


def _counted(con: duckdb.DuckDBPyConnection, table: str, columns: list[str], *, all_have_one: bool) -> tuple[int, int]:
    """Return how many rows have a key, and how many keys there are."""
    key = ", ".join(map(quoted, columns))
    there = " AND ".join(f"{quoted(column)} IS NOT NULL" for column in columns)
    # Counted apart: all rows are counted without reading them.
    rows = con.execute(f"SELECT count({'*' if all_have_one else key}) FROM tensordb.{quoted(table)}")
    count = int(scalar(rows))
    distinct = con.execute(f"SELECT count(DISTINCT ({key})) FROM tensordb.{quoted(table)} WHERE {there}")
    return count, int(scalar(distinct))


def _looked_up(con: duckdb.DuckDBPyConnection, table: str, column: str, kind: str, rows: int) -> tuple[int, int]:
    """Look rows up by their keys; return how many were found, and how many were looked up."""
    name, key = f"tensordb.{quoted(table)}", quoted(column)
    # Numbers that follow each other would be looked for as a range, without the index: neighbours are apart.
    stride = max(1 if kind in ("BLOB", "VARCHAR") else 2, -(-rows // KEYS_AT_ONCE))
    samples = [f"rowid % {stride} = {number}" for number in range(0, stride, -(-stride // _LOOK_UPS))]
    if len(samples) < stride:
        samples.append("rowid % 2 = 0 ORDER BY rowid DESC")
    found = looked_up = 0
    for sample in samples:
        some = f"SELECT {key} AS key FROM {name} WHERE {key} IS NOT NULL AND {sample} LIMIT {KEYS_AT_ONCE}"
        keys: list[Any] = scalar(con.execute(f"SELECT list(key) FROM ({some})")) or []
        text = f"SELECT count(*) FROM {name} WHERE {key} IN (SELECT unnest(?::{kind}[]))"
        found += int(scalar(con.execute(text, [keys])))
        looked_up += len(keys)
    return found, looked_up


def _dangling(con: duckdb.DuckDBPyConnection, link: _Link) -> Iterator[str]:
    """Say how many rows name a row of another table that is not there."""
    count, example = first(
        con.execute(
            f"SELECT count(*), min(n.{link.column}) FROM tensordb.{quoted(link.table)} n "
            f"ANTI JOIN tensordb.{link.owner} o ON o.{link.key} = n.{link.column} "
            f"WHERE {link.where} AND n.{link.column} IS NOT NULL"
        )
    ) or (0, None)
    if count:
        yield (
            f"{count:,} rows of the table {link.table!r} name by {link.column} what the table {link.owner!r} does not "
            f"have, such as {_shown(example)}"
        )


def _miscounted(con: duckdb.DuckDBPyConnection, rows: list[DatasetRow]) -> Iterator[str]:
    """Say which objects count other references than there are, and which checkpoints other tensors."""
    named = [*_REFERENCES, *(f"SELECT object_id FROM {row.table} WHERE payload IS NULL" for row in rows)]
    count, example = first(
        con.execute(
            f"WITH named AS (SELECT object_id, count(*) AS refs FROM ({' UNION ALL '.join(named)}) GROUP BY object_id) "
            "SELECT count(*), min(o.object_id) FROM tensordb.objects o LEFT JOIN named n USING (object_id) "
            "WHERE o.refs IS DISTINCT FROM coalesce(n.refs, 0)"
        )
    ) or (0, None)
    if count:
        yield f"{count:,} objects count another number of references than there are, such as {_shown(example)}"
    broken = con.execute(
        "SELECT c.number, c.tensors, count(t.number), count(DISTINCT t.position) FROM tensordb.checkpoints c "
        "LEFT JOIN tensordb.checkpoint_tensors t ON t.number = c.number GROUP BY c.number, c.tensors "
        "HAVING c.tensors IS DISTINCT FROM count(t.number) OR count(DISTINCT t.position) <> count(t.number) LIMIT 9"
    )
    for number, expected, there, places in broken.fetchall():
        yield f"the checkpoint {number} has {places:,} places for {there:,} tensors, and counts {expected} of them"


def _overlapping(con: duckdb.DuckDBPyConnection) -> Iterator[str]:
    """Say how many objects lie where a part of another one does; those that were mended may share a whole place."""
    overlaps = "position + stored_nbytes > lead(position) OVER (PARTITION BY segment ORDER BY position) AS reaches"
    places = "SELECT DISTINCT segment, position, stored_nbytes FROM tensordb.objects"
    count = scalar(con.execute(f"SELECT count(*) FROM (SELECT {overlaps} FROM ({places})) WHERE reaches"))
    if count:
        yield f"{count:,} objects overlap with the next one in their segment"


def _shown(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
