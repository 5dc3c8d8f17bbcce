"""Layout of the catalog: the tables, the steps that made them, and the format version that guards them.

Everything of tensordb's own lives in the schema ``tensordb``; ``main`` holds one view a dataset and nothing else, so
that any DuckDB client that opens the file sees the datasets by their names.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import duckdb

from tensordb.catalog.rows import first, scalar
from tensordb.errors import FormatError


class UpgradeNeededError(FormatError):
    """The catalog is empty or older than this release; a writable connection brings it up to date."""


STEPS: list[Callable[[duckdb.DuckDBPyConnection], None]] = []


def step(function: Callable[[duckdb.DuckDBPyConnection], None]) -> Callable[[duckdb.DuckDBPyConnection], None]:
    """Register the next schema step; a step that was released is never changed again."""
    STEPS.append(function)
    return function


@step
def core_tables(con: duckdb.DuckDBPyConnection) -> None:
    """Create the tables of format 1."""
    con.execute("CREATE SCHEMA IF NOT EXISTS tensordb")
    con.execute("CREATE TABLE tensordb.info (name VARCHAR PRIMARY KEY, value VARCHAR)")
    con.execute(
        "INSERT INTO tensordb.info VALUES ('format', '0'), ('database_id', ?), ('last_write', '')",
        [os.urandom(16).hex()],
    )
    con.execute("""
        CREATE TABLE tensordb.datasets (
            dataset_id INTEGER PRIMARY KEY, name VARCHAR, name_folded VARCHAR UNIQUE, created_at TIMESTAMP,
            nonce UTINYINT, schema VARCHAR, config VARCHAR, fields VARCHAR)""")
    con.execute(
        "CREATE TABLE tensordb.specs (spec_id INTEGER PRIMARY KEY, dtype VARCHAR, shape BIGINT[], nbytes BIGINT)"
    )
    # Automatic compression of BLOB columns picks a method that makes checkpoints ten times slower and saves nothing.
    con.execute("""
        CREATE TABLE tensordb.objects (
            object_id BLOB PRIMARY KEY, content_id BLOB USING COMPRESSION uncompressed, refs BIGINT,
            raw_nbytes BIGINT, stored_nbytes BIGINT, compression VARCHAR, quantization VARCHAR,
            relative_l2 DOUBLE, max_abs DOUBLE, segment BIGINT, position BIGINT)""")


def prepare(con: duckdb.DuckDBPyConnection, writable: bool) -> None:
    """Check the format of an opened catalog, and bring it to the newest one when it may be written.

    Raises:
        FormatError: The catalog was written by a newer release; it is left untouched.
        UpgradeNeededError: It is empty or older, and the connection is read-only.
    """
    con.execute("SET TimeZone='UTC'")
    found = format_of(con)
    if found is None and not writable:
        raise UpgradeNeededError("catalog.duckdb holds no tensordb catalog; open it once for writing to create one")
    version = found or 0
    if version > len(STEPS):
        raise FormatError(
            f"this database has catalog format {version}, this release knows up to {len(STEPS)}; upgrade tensordb"
        )
    if version < len(STEPS):
        if not writable:
            raise UpgradeNeededError(
                f"catalog format {version} must be upgraded to {len(STEPS)}: open it once for writing"
            )
        _upgrade(con, version)


def format_of(con: duckdb.DuckDBPyConnection) -> int | None:
    """Return the catalog's format version, None when it has no tensordb tables."""
    found = "SELECT count(*) FROM duckdb_tables() WHERE schema_name = 'tensordb' AND table_name = 'info'"
    if not scalar(con.execute(found)):
        return None
    row = first(con.execute("SELECT value FROM tensordb.info WHERE name = 'format'"))
    if row is None or not str(row[0]).isdigit():
        raise FormatError(
            f"the catalog's format version is {row and row[0]!r}, not a number; the file is not tensordb's"
        )
    return int(row[0])


def database_id(con: duckdb.DuckDBPyConnection) -> bytes:
    """Return the 16 random bytes that name this database in its segment files."""
    row = first(con.execute("SELECT value FROM tensordb.info WHERE name = 'database_id'"))
    if row is None:
        raise FormatError("the catalog has no database id; the file is not tensordb's")
    return bytes.fromhex(row[0])


def _upgrade(con: duckdb.DuckDBPyConnection, version: int) -> None:
    con.execute("BEGIN")
    try:
        for number, upgrade in enumerate(STEPS[version:], version + 1):
            upgrade(con)
            con.execute("UPDATE tensordb.info SET value = ? WHERE name = 'format'", [str(number)])
        con.execute("COMMIT")
    except BaseException:
        con.execute("ROLLBACK")
        raise
