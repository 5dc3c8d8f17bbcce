"""Marking what was found damaged, so that what is stored later does not rely on it, and mends it where it is equal."""

from __future__ import annotations

from dataclasses import dataclass, field

from tensordb.catalog import damage, deltas
from tensordb.engine import Database
from tensordb.errors import DatabaseBusyError, FormatError, IntegrityError


@dataclass(slots=True)
class Findings:
    """Objects by what reading them back showed."""

    sound: set[bytes] = field(default_factory=set)
    damaged: set[bytes] = field(default_factory=set)

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
                damage.mark(con, found, mended)
        except DatabaseBusyError:  # what was found is still to be reported; it will be found again
            pass


def _damaged_bases(db: Database, damaged: set[bytes]) -> set[bytes]:
    """Return which of the bases of these objects are damaged themselves; perhaps nothing else names them."""
    if not damaged:
        return set()
    with db.catalog.read() as con:
        contents = {row.base_id: row.content_id for row in deltas.bases_of(con, list(damaged)).values()}
        opened = dict(db.sources.try_open(con, dict.fromkeys(contents, "a base")))
    found = set()
    for base_id, source in opened.items():
        try:
            if isinstance(source, Exception):
                raise source
            db.sources.verify("a base", source, contents[base_id])
        except (IntegrityError, FormatError):
            found.add(base_id)
    return found
