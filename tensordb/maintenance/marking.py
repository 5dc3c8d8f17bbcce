"""Marking what was found damaged, so that what is stored later does not rely on it, and mends it where it is equal.

Invariant: what gets a mark is damaged while the catalog is held for writing it, whatever became of it since it was
found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tensordb.catalog import damage, deltas
from tensordb.engine import Database
from tensordb.errors import DatabaseBusyError
from tensordb.maintenance.judging import Opened, Unreadable, error_in, is_damage, reason_of
from tensordb.maintenance.reports import DamagedPage


@dataclass(slots=True)
class Findings:
    """Objects by what reading them back showed, and the names of what cannot be read here.

    Attributes:
        pages: Damaged pages of which every record can be read.
    """

    sound: set[bytes] = field(default_factory=set)
    damaged: set[bytes] = field(default_factory=set)
    unreadable: list[Unreadable] = field(default_factory=list)
    pages: list[DamagedPage] = field(default_factory=list)

    def note(self, error: Exception, names: Iterable[str]) -> bool:
        """Return whether an error is damage; what goes by these names cannot be read here when it is not."""
        if is_damage(error):
            return True
        self.unreadable += [Unreadable(each, reason_of(error)) for each in names]
        return False

    def mark(self, db: Database) -> None:
        """Leave marks on what is damaged, and take those away that do not hold any more."""
        if db.read_only:
            return
        with db.catalog.read() as con:
            before = damage.marked(con).keys()
        self.damaged |= _damaged_bases(db, self.damaged)
        mended, found = (self.sound & before) - self.damaged, self.damaged - before
        if not mended and not found:
            return
        try:
            with db.catalog.write("marking what is damaged") as con:
                contents = damage.contents(con, found)
                opened = dict(db.sources.try_open(con, dict.fromkeys(contents, "an object")))
                damage.mark(con, _damaged_among(db, opened, contents), mended)  # some may be mended by now
        except DatabaseBusyError:  # what was found is still to be reported; it will be found again
            pass


def _damaged_bases(db: Database, damaged: set[bytes]) -> set[bytes]:
    """Return which of the bases of these objects are damaged themselves; perhaps nothing else names them."""
    if not damaged:
        return set()
    with db.catalog.read() as con:
        contents = {row.base_id: row.content_id for row in deltas.bases_of(con, list(damaged)).values()}
        opened = dict(db.sources.try_open(con, dict.fromkeys(contents, "a base")))
    return _damaged_among(db, opened, contents)


def _damaged_among(db: Database, opened: Mapping[bytes, Opened], contents: Mapping[bytes, bytes]) -> set[bytes]:
    """Return which of some opened objects are damaged, or hold something else than their content ids say."""
    errors = {key: error_in(db, "an object", source, contents[key]) for key, source in opened.items()}
    return {key for key, error in errors.items() if error is not None and is_damage(error)}
