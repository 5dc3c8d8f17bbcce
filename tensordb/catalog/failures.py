"""DuckDB's exceptions in the words of tensordb's error tree."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

from tensordb.errors import (
    AlreadyExistsError,
    ConflictError,
    DatabaseBusyError,
    IntegrityError,
    InvalidQueryError,
    ReadOnlyError,
    StorageFullError,
    StoreError,
    TensorDBError,
)

_FULL = ("no space left", "disk quota", "file too large", "out of disk", "could not write all bytes")
_DAMAGED = (
    "corrupt",
    "checksum",
    "not a valid duckdb",
    "deserializ",
    "does not match",
    "read enough bytes",
    "metadatareader",
    "replaying wal",
)
_OF_THE_SYSTEM = (
    duckdb.OutOfMemoryException,
    duckdb.IOException,
    duckdb.HTTPException,
    duckdb.PermissionException,
    duckdb.InterruptException,
    duckdb.ResourceInUseException,
)
_FAILING = ("out of memory", "allocat", "too many open files", "permission denied", "input/output error")
_OWN_FILE = re.compile(r"catalog\.duckdb|corrupt database|checksum|block", re.IGNORECASE)
_BUSY = ("could not set lock", "conflicting lock")


def translate(error: Exception, doing: str) -> TensorDBError:
    """Return the error of tensordb's tree that says what DuckDB's says.

    Args:
        error: What DuckDB raised.
        doing: What was being done, for the message, such as ``"committing"``.
    """
    text = str(error).strip()
    lowered = text.lower()
    if any(word in lowered for word in _FULL):
        return StorageFullError(
            f"{doing}: the disk is full; nothing committed was lost, free space and repeat ({text})"
        )
    if any(word in lowered for word in _BUSY):
        return DatabaseBusyError(f"{doing}: another program holds catalog.duckdb without tensordb's lock ({text})")
    if isinstance(error, duckdb.SerializationException) or any(word in lowered for word in _DAMAGED):
        return IntegrityError(f"{doing}: the catalog is damaged; restore catalog.duckdb from a backup ({text})")
    if "read-only" in lowered:
        return ReadOnlyError(f"{doing}: the database was opened read-only ({text})")
    if "aborted" in lowered or isinstance(error, duckdb.InterruptException):
        return ConflictError(f"{doing}: an earlier error ended this transaction; roll back and repeat ({text})")
    if isinstance(error, duckdb.ConstraintException):
        return AlreadyExistsError(f"{doing}: {text}")
    return StoreError(f"{doing}: {text}")


def is_damage(error: duckdb.Error) -> bool:
    """Whether DuckDB fails over what a file holds, and not because of the system that it runs on.

    Of damage that its checksums do not show it says whatever it meets first, internal and fatal errors among them.
    """
    told = translate(error, "reading")
    if isinstance(told, StorageFullError | DatabaseBusyError | ReadOnlyError):
        return False
    if isinstance(told, IntegrityError):
        return True
    return not isinstance(error, _OF_THE_SYSTEM) and not any(word in str(error).lower() for word in _FAILING)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Run a block whose DuckDB errors come out as tensordb's."""
    try:
        yield
    except duckdb.Error as error:
        raise translate(error, doing) from error
    except RuntimeError as error:
        if is_interrupt(error):
            raise KeyboardInterrupt from error
        raise


def is_interrupt(error: BaseException) -> bool:
    """Whether this is what DuckDB makes of Ctrl-C inside a statement; `except Exception` must not swallow that."""
    return isinstance(error, RuntimeError) and str(error) == "Query interrupted"


@contextmanager
def user_sql(text: str | None, hint: str = "") -> Iterator[None]:
    """Run a block with SQL of the user's: what DuckDB refuses is his to correct, and the error names it."""
    try:
        yield
    except (
        duckdb.BinderException,
        duckdb.ParserException,
        duckdb.CatalogException,
        duckdb.ConversionException,
        duckdb.InvalidInputException,
        duckdb.OutOfRangeException,
        duckdb.SyntaxException,
        duckdb.NotImplementedException,
        duckdb.InvalidTypeException,
        duckdb.TypeMismatchException,
    ) as error:
        raise InvalidQueryError(f"{text!r} cannot be used: {str(error).strip()}{hint}") from error
    except duckdb.IOException as error:
        if _OWN_FILE.search(str(error)) is None:  # a file that the user's SQL names
            raise InvalidQueryError(f"{text!r} cannot be used: {str(error).strip()}") from error
        raise translate(error, f"running {text!r}") from error
    except duckdb.Error as error:
        raise translate(error, f"running {text!r}") from error
