"""One open catalog: blocks that read or write it, transactions, and what may be remembered between them.

Invariants:
- A write block is one transaction, or a part of the one around it. Payloads are made durable before COMMIT.
- DuckDB has no savepoints: an error that comes after a change began dooms the whole transaction, and leaving it
  raises, even when the caller swallowed the error. Errors found by checks before any change do not.
- COMMIT may raise after it became durable. A write leaves a probe, a query that is true only once it is committed:
  the row of a single insert, else a random token written with the rest. After such an error the probe decides.
- What is remembered of the catalog holds while its connection stays open (nobody else can write then), and is
  forgotten when the connection was reopened or a transaction rolled back.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb

from tensordb import files
from tensordb.catalog import blocks
from tensordb.catalog.failures import is_interrupt, translate, translated
from tensordb.catalog.generation import Generation
from tensordb.catalog.lease import CatalogLease
from tensordb.catalog.remembered import Remembered
from tensordb.catalog.rows import first, run
from tensordb.errors import (
    AlreadyExistsError,
    ConflictError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    ReadOnlyError,
)

Probe = tuple[str, list[Any]]


class Catalog:
    """The catalog of one database, shared by the threads of this process."""

    def __init__(
        self,
        lease: CatalogLease,
        *,
        read_only: bool,
        writing: Callable[[], AbstractContextManager[None]],
        before_commit: Callable[[], None],
        generation: Generation,
    ) -> None:
        """Bind a lease; `writing` guards payloads until a commit names them, `before_commit` makes them durable."""
        self.generation = generation
        self._lease = lease
        self._read_only = read_only
        self._writing = writing
        self._before_commit = before_commit
        # All of these are touched only by the thread that holds the connection.
        self.known = Remembered()
        self._epoch = -1
        self._depth = 0
        self._in_transaction = False
        self._thread = 0
        self._changes = 0
        self._doomed_by: BaseException | None = None
        self._probe: Probe | None = None

    @contextmanager
    def read(self, doing: str = "reading the catalog") -> Iterator[duckdb.DuckDBPyConnection]:
        """Hold the catalog for reading."""
        with self._leased(doing, write=False) as con:
            self._refresh()
            if not self._depth:
                with translated(doing):
                    yield con
                return
            with self._dooming(reading=True), translated(doing):
                yield con

    @contextmanager
    def write(self, doing: str, *, keeps_records: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
        """Hold the catalog for one write, atomic by itself or as a part of the transaction around it.

        `keeps_records` promises that every record stays what it is: something new is written, and nothing else.
        """
        self._check_writable(doing)
        with self._settled(doing), self._leased(doing, write=True) as con:
            self._refresh()
            self.known.begin_write()
            self.generation.renew(keeps_records=keeps_records)
            if self._depth:
                with self._dooming(reading=False), translated(doing):
                    yield con
                    self._changes += 1
                return
            with self._outermost(con, doing), translated(doing):
                self._in_transaction = False
                yield con

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the writes of a block all or nothing."""
        doing = "a transaction"
        self._check_writable(doing)
        with self._settled(doing), self._leased(doing, write=True) as con:
            self._refresh()
            if not self._depth:
                with self._outermost(con, doing):
                    self._in_transaction = True
                    yield
                return
            before = self._changes
            try:
                yield
            except BaseException as error:
                if self._changes != before:  # a part of the outer transaction cannot be undone by itself
                    self._doomed_by = self._doomed_by or error
                raise

    def checkpoint(self) -> None:
        """Have DuckDB fold its log into the file and reuse what is free, outside of transactions."""
        doing = "checkpointing"
        self._check_writable(doing)
        with self._leased(doing, write=True) as con:
            self._refresh()
            try:
                with translated(doing):
                    con.execute("CHECKPOINT")
            except BaseException:
                self._lease.discard()  # DuckDB takes no statement after a checkpoint that failed
                raise

    def check_blocks(self) -> int:
        """Compare the checksums of DuckDB's blocks, those of indexes included; return how many were compared.

        Raises:
            IntegrityError: One does not match.
        """
        doing = "reading the catalog's blocks"
        with self._leased(doing, write=False) as con, translated(doing):
            row = first(con.execute("SELECT path FROM duckdb_databases() WHERE database_name = current_database()"))
            path = row[0] if row else None
            if path is None:  # in memory
                return 0
            self._lease.discard()  # reading the file lets go of DuckDB's lock on it
            found = blocks.check(Path(path))
        if found.damaged:
            raise IntegrityError(
                f"the catalog is damaged: in {path} the checksum of {', '.join(found.damaged[:9])} does not match; "
                "restore the file from a backup, or save what can be read with `tensordb repair PATH TARGET`"
            )
        return found.compared

    def forget(self) -> None:
        """Drop everything remembered."""
        self.known = Remembered()

    @property
    def in_transaction(self) -> bool:
        """Whether the block that this thread is in belongs to a `transaction`; meaningful only inside a block."""
        return self._depth > 0 and self._in_transaction

    @property
    def in_own_transaction(self) -> bool:
        """Whether this thread is in a `transaction`, to be asked anywhere and without waiting for anybody."""
        return self._depth > 0 and self._thread == threading.get_ident() and self.in_transaction

    def expect(self, probe: Probe) -> None:
        """Leave a query that returns a row exactly when the current single write is committed; saves the token."""
        self._probe = probe

    def close(self) -> None:
        """Close the connection; doing it twice is fine."""
        self._lease.close()
        self.generation.close()

    @contextmanager
    def _leased(self, doing: str, *, write: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        """Hold the lease's connection; only what DuckDB says while it opens the file is translated here."""
        # A connection is never reopened below a transaction: this is a child forked inside it. Said before the lease
        # is asked for, which the parent may hold for long.
        if self._depth and self._lease.epoch != self._epoch:
            raise ConflictError(
                f"{doing}: this process was forked inside a transaction, with which only its parent can go on; open "
                "the folder anew in the child, or fork outside of transactions"
            )
        with ExitStack() as stack:
            with translated(doing):
                con = stack.enter_context(self._lease.connection(write=write))
            epoch, depth = self._lease.epoch, self._depth
            try:
                yield con
            except BaseException as error:
                if self._lease.epoch == epoch and (not isinstance(error, Exception) or is_interrupt(error)):
                    self._begin_anew(con, depth)
                raise

    def _begin_anew(self, con: duckdb.DuckDBPyConnection, depth: int) -> None:
        """Trust nothing after Ctrl-C, which comes between any two calls: a transaction may be open that none ends."""
        self._lease.discard()
        if not depth:
            self._depth = 0
            self.forget()
            with suppress(duckdb.Error):  # mostly there is none; one in memory is not opened anew
                con.rollback()

    def _check_writable(self, doing: str) -> None:
        if self._read_only:
            raise ReadOnlyError(f"{doing}: the database was opened with read_only=True; open it without to write")

    def _refresh(self) -> None:
        if self._lease.epoch != self._epoch:
            self.forget()
            self._epoch = self._lease.epoch
        if self._depth and self._doomed_by is not None:
            raise ConflictError(
                f"this transaction can only roll back, after: {self._doomed_by}; leave the block and repeat it"
            ) from self._doomed_by

    @contextmanager
    def _dooming(self, *, reading: bool) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            checked = isinstance(error, NotFoundError | AlreadyExistsError | InvalidInputError)
            # Whatever DuckDB raises has ended its transaction, even a misspelled name in a query.
            if isinstance(error.__cause__, duckdb.Error) or not (checked or (reading and isinstance(error, Exception))):
                self._doomed_by = error
            raise

    @contextmanager
    def _outermost(self, con: duckdb.DuckDBPyConnection, doing: str) -> Iterator[None]:
        epoch = self._lease.epoch
        with self._writing():
            try:
                with translated(doing):
                    run(con, "BEGIN")
                self._depth, self._changes, self._doomed_by, self._probe = 1, 0, None, None
                self._thread = threading.get_ident()
                yield
                self._check_committable(epoch)
                self._before_commit()
                self._lease.secure_log()
                self._commit(con)
            except BaseException:
                if self._lease.epoch == epoch:  # else this is a forked child, and the transaction is its parent's
                    self._roll_back(con)
                raise
            finally:
                self._depth = 0

    def _check_committable(self, epoch: int) -> None:
        if self._lease.epoch != epoch:
            raise ConflictError("this process was forked inside a transaction, which only its parent can commit")
        if self._doomed_by is not None:
            raise ConflictError(
                f"the transaction was rolled back, because of an error inside: {self._doomed_by}"
            ) from self._doomed_by

    def _commit(self, con: duckdb.DuckDBPyConnection) -> None:
        # Of many writes none can speak for all, and what one of them did may have been so before.
        probe = None if self._in_transaction else self._probe
        if probe is None and not (self._in_transaction and not self._changes):
            probe = self._leave_token(con)
        try:
            files.commit(lambda: run(con, "COMMIT"))
        except (duckdb.Error, RuntimeError) as error:
            self._lease.discard()
            raise _CommitRaisedError(error, probe) from error

    def _leave_token(self, con: duckdb.DuckDBPyConnection) -> Probe:
        token = secrets.token_hex(16)
        with translated("committing"):
            con.execute("UPDATE tensordb.info SET value = ? WHERE name = 'last_write'", [token])
        return "SELECT 1 FROM tensordb.info WHERE name = 'last_write' AND value = ?", [token]

    @contextmanager
    def _settled(self, doing: str) -> Iterator[None]:
        """Decide about a COMMIT that raised, after its connection was left: was it durable, all is well."""
        try:
            yield
        except _CommitRaisedError as raised:
            if is_interrupt(raised.error):
                raise KeyboardInterrupt from raised.error
            if not self._is_committed(raised.probe):
                raise translate(raised.error, doing) from raised.error

    def _is_committed(self, probe: Probe | None) -> bool:
        if probe is None:
            return False
        with self._leased("looking whether a commit took effect", write=False) as con:
            self._refresh()
            try:
                return first(con.execute(*probe)) is not None
            except duckdb.CatalogException:  # not even the table is there
                return False

    def _roll_back(self, con: duckdb.DuckDBPyConnection) -> None:
        self.known = Remembered()
        try:
            con.execute("ROLLBACK")
        except duckdb.Error:
            # Nothing to roll back, or a connection that failed for good: the next block opens a new one, and what
            # was not committed is gone with this one.
            self._lease.discard()


class _CommitRaisedError(Exception):
    """COMMIT raised, which does not mean that it did not take effect."""

    def __init__(self, error: Exception, probe: Probe | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.probe = probe  # a copy: other threads write before it is asked
