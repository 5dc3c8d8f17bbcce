"""What reading something stored raised says about it: that it is damaged, or only that it cannot be read here.

Invariant: damage is what is not as it was written, and nothing else. What needs a newer release, a newer torch or a
package that is not installed, or what the file system or the memory did not give, may be sound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import duckdb

from tensordb.engine import Database
from tensordb.engine.sources import ObjectSource
from tensordb.errors import ConflictError, DatabaseBusyError, FormatError, IntegrityError, UnsupportedFormatError

T = TypeVar("T")
Opened = ObjectSource | Exception
"""An object, or what opening it raised."""
_OF_THE_WHOLE = (duckdb.Error, ConflictError, DatabaseBusyError)
"""What no payload is to blame for: the database is closed, or the catalog cannot be asked."""


@dataclass(frozen=True)
class Unreadable:
    """Something stored that cannot be read here, so that nobody can tell whether it is damaged.

    Attributes:
        name: What it is, such as ``"record 'a' of dataset 'd'"``.
        reason: What it takes to read it: a newer release or torch, a package, or what the system refused.
    """

    name: str
    reason: str


def tried(read: Callable[[], T]) -> T | Exception:
    """Return what `read` does with one payload, or whatever it raises but for what is about the whole database."""
    try:
        return read()
    except _OF_THE_WHOLE:
        raise
    except Exception as error:
        return error


def error_in(db: Database, name: str, opened: Opened, content_id: bytes) -> Exception | None:
    """Return what is wrong with an object that was to be opened, and is to hold this content."""

    def read() -> None:
        if isinstance(opened, Exception):
            raise opened
        db.sources.verify(name, opened, content_id)

    return tried(read)


def is_damage(error: Exception) -> bool:
    """Tell whether an error says that what is stored is not what was written."""
    return isinstance(error, IntegrityError | FormatError) and not isinstance(error, UnsupportedFormatError)


def said_of(name: str, error: Exception, first: str) -> str:
    """Return what an error, met in an object that several things share, says of this one and not of the first."""
    said = str(error)
    return name + said.removeprefix(first) if said.startswith(first) else said


def reason_of(error: Exception) -> str:
    """Return what an error says, with its kind where it is none of tensordb's."""
    from_here = type(error).__module__.startswith("tensordb.")
    return str(error) if from_here else f"{type(error).__name__}: {error}"
