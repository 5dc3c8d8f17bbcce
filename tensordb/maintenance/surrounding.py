"""What is damaged in segment files beside the payloads: `verify` reads the payloads themselves."""

from __future__ import annotations

import contextlib

import numpy as np

from tensordb.catalog import objects
from tensordb.engine import Database
from tensordb.errors import StoreError


def damaged_surroundings(db: Database) -> dict[int, list[str]]:
    """Return by segment what is damaged around the payloads that the catalog names, a sentence each with its place.

    A file that the system does not open is left out: its payloads were found to be unreadable.
    """
    with db.catalog.read() as con:
        places = objects.places(con)
    segments = places["segment"]
    begins = np.flatnonzero(np.diff(segments, prepend=-1)).tolist()
    found = dict[int, list[str]]()
    for begin, end in zip(begins, [*begins, len(segments)][1:], strict=True):
        offsets, lengths = places["position"][begin:end], places["stored_nbytes"][begin:end]
        with contextlib.suppress(StoreError):
            if said := db.payloads.damage_around(int(segments[begin]), offsets, lengths):
                found[int(segments[begin])] = said
    return found
