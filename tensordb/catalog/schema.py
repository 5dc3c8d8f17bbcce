"""Layout of the catalog: the tables, the steps that made them, and the format version that guards them.

Everything of tensordb's own lives in the schema ``tensordb``; ``main`` holds one view a dataset and nothing else, so
that any DuckDB client that opens the file sees the datasets by their names. ``history`` holds the views of checkpoints
and weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import duckdb

from tensordb import files
from tensordb.catalog import connection
from tensordb.catalog.fields import quoted
from tensordb.catalog.ids import CHECKPOINT_NONCE, generated_id_sql
from tensordb.catalog.rows import first
from tensordb.errors import FormatError, IntegrityError, UnsupportedFormatError


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


@step
def checkpoint_tables(con: duckdb.DuckDBPyConnection) -> None:
    """Create the tables of checkpoints, and those of objects that are stored as differences from others."""
    con.execute("""
        CREATE TABLE tensordb.deltas (
            object_id BLOB PRIMARY KEY, base_id BLOB USING COMPRESSION uncompressed, length INTEGER,
            chain_nbytes BIGINT)""")
    con.execute("CREATE TABLE tensordb.runs (run_id INTEGER PRIMARY KEY, name VARCHAR UNIQUE, created_at TIMESTAMP)")
    con.execute("""
        CREATE TABLE tensordb.checkpoints (
            number BIGINT PRIMARY KEY, run_id INTEGER, step BIGINT, epoch DOUBLE, created_at TIMESTAMP, parent BIGINT,
            metrics MAP(VARCHAR, DOUBLE), metadata JSON, facts BLOB USING COMPRESSION uncompressed,
            document BLOB USING COMPRESSION uncompressed, document_id BLOB USING COMPRESSION uncompressed,
            tensors INTEGER, nbytes BIGINT, stored_nbytes BIGINT, added_nbytes BIGINT)""")
    con.execute("""
        CREATE TABLE tensordb.checkpoint_tensors (
            number BIGINT, position INTEGER, name VARCHAR, object_id BLOB USING COMPRESSION uncompressed,
            spec_id INTEGER, norm DOUBLE)""")
    con.execute(
        "CREATE TABLE tensordb.tags (run_id INTEGER, name VARCHAR, number BIGINT, created_at TIMESTAMP, "
        "PRIMARY KEY (run_id, name))"
    )


@step
def weight_tables(con: duckdb.DuckDBPyConnection) -> None:
    """Create the tables of weights and of their labels."""
    con.execute("""
        CREATE TABLE tensordb.weights (
            number BIGINT PRIMARY KEY, content_id BLOB USING COMPRESSION uncompressed,
            base_id BLOB USING COMPRESSION uncompressed, object_id BLOB USING COMPRESSION uncompressed,
            spec_id INTEGER, created_at TIMESTAMP, max_error DOUBLE, relative_l2 DOUBLE, max_abs DOUBLE)""")
    con.execute("""
        CREATE TABLE tensordb.weight_labels (
            number BIGINT, position INTEGER, name VARCHAR, layer_type VARCHAR, model_name VARCHAR, metadata JSON,
            facts BLOB USING COMPRESSION uncompressed)""")


@step
def statistics_indexes_and_damage(con: duckdb.DuckDBPyConnection) -> None:
    """Give records statistics, datasets indexes, damaged payloads a table, and the history its present views."""
    _history_views(con)
    _statistics_columns(con)
    # Each index is a table of its own, made when it is asked for.
    con.execute("ALTER TABLE tensordb.datasets ADD COLUMN indexes VARCHAR")
    con.execute("CREATE TABLE tensordb.damaged (segment BIGINT, position BIGINT, PRIMARY KEY (segment, position))")


def _history_views(con: duckdb.DuckDBPyConnection) -> None:
    """Create the views that users ask in SQL, ``history.…``, in place of those that earlier releases made."""
    con.execute("DROP SCHEMA IF EXISTS history CASCADE")
    con.execute("CREATE SCHEMA history")
    _checkpoint_views(con)
    _weight_view(con)


def _checkpoint_views(con: duckdb.DuckDBPyConnection) -> None:
    identity = f"{generated_id_sql('c.number', CHECKPOINT_NONCE)} AS checkpoint_id"
    con.execute(f"""
        CREATE VIEW history.checkpoints AS
        SELECT {identity}, r.name AS run, c.step, c.epoch, c.created_at,
            CASE WHEN c.parent IS NOT NULL THEN {generated_id_sql("c.parent", CHECKPOINT_NONCE)} END AS parent_id,
            coalesce((SELECT list(t.name ORDER BY t.name) FROM tensordb.tags t WHERE t.number = c.number), []) AS tags,
            c.metrics, c.metadata, c.tensors, c.nbytes, c.stored_nbytes, c.added_nbytes
        FROM tensordb.checkpoints c JOIN tensordb.runs r USING (run_id)""")
    con.execute("""
        CREATE VIEW history.runs AS
        SELECT r.name AS run, r.created_at, count(c.number) AS checkpoints, arg_max(c.step, c.number) AS latest_step,
            max(c.created_at) AS latest_at,
            coalesce(sum(c.nbytes), 0)::BIGINT AS nbytes, coalesce(sum(c.added_nbytes), 0)::BIGINT AS added_nbytes
        FROM tensordb.runs r LEFT JOIN tensordb.checkpoints c USING (run_id) GROUP BY ALL""")
    # The id is made before the join: a condition on it then selects a checkpoint before its tensors are looked for.
    con.execute(f"""
        CREATE VIEW history.tensors AS
        SELECT c.checkpoint_id, c.run, c.step, t.position, split_part(t.name, '.', 1) AS role, t.name, s.dtype,
            s.shape, s.nbytes, o.stored_nbytes, o.compression, o.quantization, o.relative_l2, o.max_abs, t.norm,
            coalesce(d.length, 0) AS deltas, lower(hex(o.content_id)) AS content_id
        FROM tensordb.checkpoint_tensors t
            JOIN (
                SELECT c.number, {identity}, r.name AS run, c.step
                FROM tensordb.checkpoints c JOIN tensordb.runs r USING (run_id)) c USING (number)
            JOIN tensordb.specs s USING (spec_id) JOIN tensordb.objects o USING (object_id)
            LEFT JOIN tensordb.deltas d USING (object_id)""")


def _weight_view(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("""
        CREATE VIEW history.weights AS
        SELECT lower(hex(w.content_id)) AS hash, l.name, l.layer_type, l.model_name, l.metadata, s.dtype, s.shape,
            s.nbytes, o.stored_nbytes, o.compression, o.quantization,
            coalesce(w.relative_l2, o.relative_l2) AS relative_l2, coalesce(w.max_abs, o.max_abs) AS max_abs,
            lower(hex(w.base_id)) AS base_hash, w.max_error, coalesce(d.length, 0) AS deltas, w.created_at
        FROM tensordb.weights w JOIN tensordb.specs s USING (spec_id)
            LEFT JOIN tensordb.weight_labels l ON l.number = w.number
            LEFT JOIN tensordb.objects o ON o.object_id = w.object_id
            LEFT JOIN tensordb.deltas d ON d.object_id = w.object_id""")


def _statistics_columns(con: duckdb.DuckDBPyConnection) -> None:
    """Give each dataset its column of statistics, NULL for the records that there are, and show it in the view."""
    kinds = "min DOUBLE, max DOUBLE, mean DOUBLE, std DOUBLE, norm DOUBLE, zeros BIGINT, non_finite BIGINT"
    rows = con.execute("SELECT dataset_id, name, nonce FROM tensordb.datasets").fetchall()
    if not rows:
        return  # as in a new database, which need not list its columns
    typed = "SELECT table_name FROM duckdb_columns() WHERE schema_name = 'tensordb' AND column_name = 'metadata'"
    with_metadata = {name for (name,) in con.execute(typed).fetchall()}
    for dataset_id, name, nonce in rows:
        table = f"records_{dataset_id}"
        con.execute(f"ALTER TABLE tensordb.{table} ADD COLUMN stats STRUCT({kinds})")
        record_id = f"coalesce(r.record_id, {generated_id_sql('r.seq', nonce)})"
        metadata = "r.metadata" if table in with_metadata else "NULL"
        con.execute(
            f"CREATE OR REPLACE VIEW main.{quoted(name)} AS SELECT {record_id} AS record_id, r.created_at, s.dtype, "
            f"s.shape, s.nbytes, {metadata} AS metadata, r.stats "
            f"FROM tensordb.{table} r JOIN tensordb.specs s ON r.spec_id = s.spec_id"
        )


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
    _refuse(version)
    if version < len(STEPS):
        if not writable:
            raise UpgradeNeededError(
                f"catalog format {version} must be upgraded to {len(STEPS)}: open it once for writing"
            )
        _upgrade(con, version)


def refuse_newer(con: duckdb.DuckDBPyConnection) -> None:
    """Check that a catalog, of which more may be damaged, is not of a newer release.

    Raises:
        UnsupportedFormatError: It is.
        IntegrityError: It does not say a format.
    """
    try:
        version = format_of(con)
    except FormatError as error:
        raise IntegrityError(str(error)) from error
    _refuse(version or 0)


def _refuse(version: int) -> None:
    if version > len(STEPS):
        raise UnsupportedFormatError(
            f"this database has catalog format {version}, this release knows up to {len(STEPS)}; upgrade tensordb"
        )


def format_of(con: duckdb.DuckDBPyConnection) -> int | None:
    """Return the catalog's format version, None when it has no tensordb tables."""
    try:
        # Listing the tables there are would take DuckDB ten times as long.
        row = first(con.execute("SELECT value FROM tensordb.info WHERE name = 'format'"))
    except duckdb.CatalogException:
        return None
    if row is None or not str(row[0]).isdigit():
        raise FormatError(
            f"the catalog's format version is {row and row[0]!r}, not a number; the file is not tensordb's"
        )
    return int(row[0])


def format_by_tables(con: duckdb.DuckDBPyConnection) -> int:
    """Return the format version that the tables are of, for a catalog that does not say it.

    Raises:
        UnsupportedFormatError: There is more than in the newest format that this release knows.
        IntegrityError: There is something else.
    """
    there = _columns(con)
    known = list[set[tuple[str, str]]]()
    fresh = connection.open_memory()
    try:
        for upgrade in STEPS:
            upgrade(fresh)
            known.append(_columns(fresh))
    finally:
        fresh.close()
    if there > known[-1]:
        raise UnsupportedFormatError("the catalog has the tables of a newer release; upgrade tensordb")
    if there not in known:
        raise IntegrityError("the catalog does not say its format, and its tables are of none")
    return 1 + max(number for number, columns in enumerate(known) if columns == there)


def _columns(con: duckdb.DuckDBPyConnection) -> set[tuple[str, str]]:
    """Return the columns of all tables but those that datasets have for themselves."""
    rows = con.execute(
        "SELECT table_name, column_name FROM duckdb_columns() WHERE database_name = current_database() "
        "AND schema_name = 'tensordb'"
    )
    return {(table, column) for table, column in rows.fetchall() if not table.startswith(("records_", "index_"))}


def read_everything(con: duckdb.DuckDBPyConnection) -> None:
    """Read every value of every table of tensordb's: DuckDB compares the checksum of each block that it reads.

    Raises:
        duckdb.Error: A block is damaged.
    """
    tables = con.execute("SELECT table_name FROM duckdb_tables() WHERE schema_name = 'tensordb'").fetchall()
    for (name,) in tables:
        con.execute(f'SELECT max(hash(each)) FROM tensordb."{name}" each').fetchall()


def database_id(con: duckdb.DuckDBPyConnection) -> bytes:
    """Return the 16 random bytes that name this database in its segment files."""
    row = first(con.execute("SELECT value FROM tensordb.info WHERE name = 'database_id'"))
    if row is None:
        raise FormatError("the catalog has no database id; the file is not tensordb's")
    return database_id_of(row[0])


def database_id_of(text: str) -> bytes:
    """Return the id of a database from its stored form; raise FormatError when it is none."""
    if not isinstance(text, str) or re.fullmatch(r"[0-9a-f]{32}", text, re.ASCII) is None:
        raise FormatError(f"the catalog's database id is {text!r:.100}, which none is; the file is damaged")
    return bytes.fromhex(text)


def _upgrade(con: duckdb.DuckDBPyConnection, version: int) -> None:
    con.execute("BEGIN")
    try:
        for number, upgrade in enumerate(STEPS[version:], version + 1):
            upgrade(con)
            con.execute("UPDATE tensordb.info SET value = ? WHERE name = 'format'", [str(number)])
        files.commit(lambda: con.execute("COMMIT"))
    except BaseException:
        con.execute("ROLLBACK")
        raise
