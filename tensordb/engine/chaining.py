"""Reading payloads that no catalog links: differences find their bases by content ids among all that are there.

Invariant: each payload is yielded once, in an order in which a base comes before what was made from it, with what reads
it or with what keeps it from being read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from tensordb.encoding import PayloadReader
from tensordb.engine.scanning import Place
from tensordb.errors import FormatError, IntegrityError, MissingDependencyError

UNREADABLE = (IntegrityError, FormatError, MissingDependencyError)
"""What reading raises for a payload that is damaged, or that this installation cannot read."""


def readers_of(places: Sequence[Place]) -> Iterator[tuple[Place, PayloadReader | Exception]]:
    """Yield what reads each payload, those that are differences last, or the error that keeps it from being read.

    Raises:
        OSError: A file cannot be mapped.
    """
    known = _Known()
    alone: list[Place] = []
    waiting: dict[Place, bytes] = {}
    lengths: set[int] = set()
    for place in places:
        try:
            reader = known.open(place)
        except UNREADABLE as error:
            yield place, error
            continue
        if reader.base_id is None:
            alone.append(place)
        else:
            waiting[place] = reader.base_id
            lengths.add(math.prod(reader.spec.shape))
    for place in alone:
        reader = known.open(place)
        if math.prod(reader.spec.shape) in lengths:  # a base is as long as what was made from it
            known.learn(place, reader)
        yield place, reader
    yield from _differences(known, waiting)


def _differences(known: _Known, waiting: dict[Place, bytes]) -> Iterator[tuple[Place, PayloadReader | Exception]]:
    """Yield those whose bases are there, and in turn those that were made from them."""
    while ready := [place for place, base in waiting.items() if base in known.places]:
        for place in ready:
            del waiting[place]
        for place in ready:
            reader = known.open(place)
            if waiting:
                known.learn(place, reader)
            yield place, reader
    for place, base in waiting.items():
        yield place, IntegrityError(f"it holds what changed since {base.hex()}, which is not there")


class _Known:
    """Where the content is that others may have been made from."""

    def __init__(self) -> None:
        self.places: dict[bytes, Place] = {}

    def open(self, place: Place) -> PayloadReader:
        return PayloadReader(place.map(), bases=lambda content_id: self.open(self.places[content_id]))

    def learn(self, place: Place, reader: PayloadReader) -> None:
        """Note what a payload holds, unless it is damaged: then another one may hold the same."""
        try:
            self.places.setdefault(reader.content_id(), place)
        except UNREADABLE:
            return
