"""Writing a catalog anew from what can be read of it.

Invariant: every row that can be read is copied, with its key; what cannot be is counted by table. DuckDB makes its keys
anew from the rows, so damage in their blocks costs nothing. The tables of indexes on metadata are left empty: they say
nothing that the records do not, and a row missing in one would hide a record. `remake` and `reconcile` are to follow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb

from tensordb import files
from tensordb.catalog import connection, schema
from tensordb.catalog.failures import is_damage, is_interrupt, translated
from tensordb.catalog.rows import first, scalar
from tensordb.errors import IntegrityError

_ROWS_AT_ONCE = 122_880
"""Rows of what DuckDB stores together; within one of them halves are tried."""
_LEAST_ROWS = 2048
"""Rows that DuckDB reads at once: smaller pieces fail or succeed together."""


def rebuild(path: Path, *, before: Callable[[str], None], avoid: Collection[str] = ()) -> dict[str, int]:
    """Copy the tables of a catalog that nobody uses into a new file, which takes its place.

    Args:
        path: The catalog.
        before: Is called with the name of each step that reads the old file.
        avoid: Steps to be taken for ones that failed.

    Returns:
        Of each table of which rows could not be copied, how many those are at most.

    Raises:
        IntegrityError: What cannot be read is the names of tables.
        FormatError: The catalog is of a newer release.
        StoreError: The file system refuses.
    """
    fresh = fresh_of(path)
    remove(fresh)
    try:
        with translated("writing the catalog anew"):
            lost = _Copying(path, fresh, before, frozenset(avoid)).everything()
        with contextlib.suppress(FileNotFoundError):
            files.unlink(connection.log_of(path))
        files.rename(fresh, path)
        files.sync_directory(path.parent)
    finally:
        remove(fresh)
    return lost


def fresh_of(path: Path) -> Path:
    """Return where `rebuild` writes; what lies there when it does not return is to be removed."""
    return path.with_name(f"{path.name}.rebuilt")


def remove(path: Path) -> None:
    """Remove a catalog and its log, if they are there."""
    for each in (path, connection.log_of(path)):
        with contextlib.suppress(FileNotFoundError):
            files.unlink(each)


@dataclass(frozen=True)
class _Copying:
    """A damaged catalog, and the file that it is copied into."""

    path: Path
    fresh: Path
    before: Callable[[str], None]
    avoid: frozenset[str]

    def everything(self) -> dict[str, int]:
        """Copy the tables; return what could not be copied."""
        with contextlib.suppress(IntegrityError), self._reading("the format") as con:  # if it cannot be, tables tell it
            schema.refuse_newer(con)
        with self._reading("the names of tables") as con:
            names = _copy_schema(con)
        return {name: rows for name in names if (rows := self._table(name))}

    def _table(self, name: str) -> int:
        """Copy a table; return how many rows are in the pieces that could not be read."""
        if self._copied(name, ""):
            return 0
        lost, pending = 0, list(_ranges(self._end(name)))
        while pending:
            begin, end = pending.pop()
            if self._copied(name, f"WHERE rowid >= {begin} AND rowid < {end}"):
                continue
            if end - begin > _LEAST_ROWS:
                middle = (begin + end) // 2
                pending += [(middle, end), (begin, middle)]
            else:
                lost += end - begin - self._without_twins(name, begin, end)
        return lost

    def _copied(self, name: str, within: str) -> bool:
        """Copy rows of a table; return whether they could be read."""
        try:
            with self._reading(f"{name} {within}") as con:
                con.execute(f'INSERT INTO fresh.tensordb."{name}" SELECT * FROM tensordb."{name}" {within}')
                con.execute("CHECKPOINT fresh")
        except IntegrityError:
            return False
        return True

    def _without_twins(self, name: str, begin: int, end: int) -> int:
        """Copy the rows of a piece whose keys are not there yet, if it can be read; return how many."""
        within = f"WHERE rowid >= {begin} AND rowid < {end}"
        try:
            with self._reading(f"{name} without twins {within}") as con:
                values = f'SELECT * FROM tensordb."{name}" {within}'
                count = scalar(con.execute(f'INSERT OR IGNORE INTO fresh.tensordb."{name}" {values}'))
                con.execute("CHECKPOINT fresh")
        except IntegrityError:
            return 0
        return int(count)

    def _end(self, name: str) -> int:
        """Return a row number behind every row, for which no column is read."""
        with self._reading(f"the number of rows of {name}") as con:
            found = scalar(con.execute(f'SELECT max(rowid) FROM tensordb."{name}"'))
        return 0 if found is None else int(found) + 1

    @contextlib.contextmanager
    def _reading(self, step: str) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open both files: each time, as DuckDB may refuse everything after an error.

        Raises:
            IntegrityError: The old one is damaged. What else goes wrong, such as a full disk, is raised as it is.
        """
        if step in self.avoid:
            raise IntegrityError(f"DuckDB crashed when it read {step}")
        self.before(step)
        try:
            con = _both(self.path, self.fresh)
            try:
                yield con
            finally:
                con.close()
        except duckdb.Error as error:
            if is_damage(error):
                raise IntegrityError(f"the catalog is damaged ({str(error).strip()})") from error
            raise
        except (RuntimeError, UnicodeDecodeError) as error:  # of C++'s library, and over names that are no text
            if is_interrupt(error):
                raise
            raise IntegrityError(f"the catalog is damaged ({error})") from error


def _both(path: Path, fresh: Path) -> duckdb.DuckDBPyConnection:
    """Open the old file, without ever writing to it, and the new one beside it."""
    con = connection.open_file(path, writable=True)  # so that its log is read, too
    con.execute("PRAGMA disable_checkpoint_on_shutdown")
    con.execute(f"ATTACH '{str(fresh).replace(chr(39), 2 * chr(39))}' AS fresh")
    return con


def _copy_schema(con: duckdb.DuckDBPyConnection) -> list[str]:
    """Make the tables and views in the new file; return the names of the tables to be filled."""
    old = first(con.execute("SELECT current_database()"))
    con.execute(f'COPY FROM DATABASE "{old[0] if old else ""}" TO fresh (SCHEMA)')
    rows = con.execute(
        "SELECT table_name FROM duckdb_tables() WHERE database_name = 'fresh' AND schema_name = 'tensordb'"
    )
    names = sorted(name for (name,) in rows.fetchall() if not name.startswith("index_"))
    if not {"info", "datasets", "specs", "objects"}.issubset(names):
        raise IntegrityError("the catalog has no tables of tensordb's")
    return names


def _ranges(rows: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, rows, _ROWS_AT_ONCE):
        yield begin, min(begin + _ROWS_AT_ONCE, rows)
