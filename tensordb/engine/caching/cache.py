"""Three tiers of records that are read again: decoded tensors, encoded payloads in memory, mapped segments.

Tensors and payloads are kept by what identifies them (`RecordRow.source`), which stands for the same bytes for ever, so
that they are never stale. What may be stale is which object a record is: a `Place`. Invariants: a place is used only
while the catalog's word of changed records is the one that was read, inside a block, together with the row; nothing is
taken from here, or put here, inside a transaction, which may see what is never committed. A payload's checksums are
verified when it comes to the second tier, which holds bytes of its own that nobody can write to, and not again with
each hit, as the tensors of the first are not; what is read from a file is verified every time. Tensors here are handed
out as copies alone.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from tensordb import tensors
from tensordb.catalog.generation import Generation
from tensordb.catalog.records import RecordRow
from tensordb.engine.caching.config import CacheConfig, CacheStats
from tensordb.engine.caching.tier import Tier
from tensordb.engine.sources import Source
from tensordb.errors import FormatError, IntegrityError
from tensordb.forks import mend_after_fork
from tensordb.payloads import Location

_PLACE_NBYTES = 1 << 10
"""Of the budget of both tiers, for which a place is remembered: it is small beside what it leads to."""
_FEWEST_PLACES = 1 << 10
_DECODED_BESIDE, _ENCODED_BESIDE = 512, 6 << 10
"""Bytes of what holds a tensor, and of a payload's header as it was parsed, with what its planes are."""
_LONGEST_DOCUMENT = 4 << 10
"""Packed metadata from which on a record's place is not remembered."""
_SMALL = 64 << 10
"""Bytes of a payload that one read saves as much as taking them into memory costs, or so."""
_WARMING = 1 << 13
"""Objects whose reads are counted before they are in memory."""


@dataclass(slots=True, eq=False)
class Place:
    """Where a record is, as the catalog said when its word of changed records was `word`.

    Attributes:
        reads: How often it was read from the second tier, or from a file if its payload is large or has no room there.
        made: Room for what a caller makes of the row once.
    """

    row: RecordRow
    source: Source
    word: int | None
    reads: int = 0
    made: Any = None
    key: Hashable = field(init=False)
    """What the decoded tensor is kept under."""

    def __post_init__(self) -> None:
        self.key = self.row.source if self.row.page_row is None else (self.row.source, self.row.page_row)


class TensorCache:
    """Of one open database; safe to use from threads, and goes on in a forked child."""

    def __init__(self, config: CacheConfig, generation: Generation, check: Callable[[Location], None]) -> None:
        """Bind a database's words; `check` raises IntegrityError where a mapped place cannot be touched any more."""
        self.config = config
        self._generation = generation
        self._check = check
        self._places: OrderedDict[tuple[str, str], Place] = OrderedDict()
        self._most_places = max(_FEWEST_PLACES, (config.decoded_bytes + config.encoded_bytes) // _PLACE_NBYTES)
        self._decoded: Tier[tuple[torch.Tensor, Place]] = Tier(config.decoded_bytes, _DECODED_BESIDE)
        self._encoded: Tier[Source] = Tier(config.encoded_bytes, _ENCODED_BESIDE)
        self._warming: OrderedDict[bytes, int] = OrderedDict()
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()
        self.clear()
        mend_after_fork(self)

    def find(self, dataset: str, record_id: str, whole: bool) -> tuple[Place, torch.Tensor | None] | None:
        """Return what is known for sure of a record; None when the catalog has to be asked.

        Returns:
            Its place, and if the `whole` tensor is wanted and decoded, that tensor, to be copied.
        """
        word = self._generation.records()
        key = dataset, record_id
        with self._lock:
            place = self._places.get(key)
            if place is None or word is None or place.word != word:
                return None
            self._places.move_to_end(key)
            if not whole or (found := self._decoded.get(place.key)) is None:
                return place, None
            self._counts["decoded_hits"] += 1
            return place, found[0]

    def find_many(self, dataset: str, record_ids: Iterable[str]) -> tuple[int | None, dict[str, Place]]:
        """Return what is known for sure of records, by their ids, and the word that it is known under."""
        word = self._generation.records()
        found: dict[str, Place] = {}
        if word is None:
            return word, found
        with self._lock:
            for record_id in record_ids:
                place = self._places.get((dataset, record_id))
                if place is not None and place.word == word:
                    self._places.move_to_end((dataset, record_id))
                    found[record_id] = place
        return word, found

    def note(self, dataset: str, place: Place, *, whole: bool) -> torch.Tensor | None:
        """Remember a place that the catalog told; return the record's tensor if it is decoded all the same."""
        self.note_many(dataset, (place,))
        return self.decoded((place,))[0] if whole else None

    def note_many(self, dataset: str, places: Iterable[Place]) -> None:
        """Remember places that the catalog told."""
        with self._lock:
            for place in places:
                row = place.row
                self._counts["lookups"] += 1
                if place.word is not None and len(row.document or b"") <= _LONGEST_DOCUMENT:
                    before = self._places.pop((dataset, row.record_id), None)
                    place.reads = 0 if before is None else before.reads
                    self._places[dataset, row.record_id] = place
            while len(self._places) > self._most_places:
                self._places.popitem(last=False)

    def decoded(self, places: Iterable[Place]) -> list[torch.Tensor | None]:
        """Return the decoded tensors that there are of these records, to be copied."""
        with self._lock:
            found = [self._decoded.get(place.key) for place in places]
            self._counts["decoded_hits"] += sum(each is not None for each in found)
        return [None if each is None else each[0] for each in found]

    def source(self, place: Place, *, known: bool) -> tuple[Source, bool]:
        """Return what a record is to be decoded from, and whether its tensor is ripe for `keep`.

        Args:
            place: Where it is.
            known: Whether that was known without the catalog.

        Raises:
            IntegrityError: The payload was to be taken into memory, and is damaged.
        """
        key = place.row.source
        with self._lock:
            held = self._encoded.get(key)
            if held is not None:
                self._counts["encoded_hits"] += 1
                return held, self._reads_enough(place)
            self._counts["mapped_hits" if known else "misses"] += 1
            reads = self._warming.pop(key, 0) + 1
            nbytes = place.source.reader.payload_nbytes
            fits = self._encoded.fits(nbytes)
            # A page that is read here and there costs more to take in than it saves; its records need not wait for it.
            if not fits or reads < self.config.promote_after * max(1, nbytes // _SMALL):
                self._warming[key] = reads
                if len(self._warming) > _WARMING:
                    self._warming.popitem(last=False)
                return place.source, not (fits and nbytes <= _SMALL) and self._reads_enough(place)
        return self._take_in(key, place.source), False

    def keep(self, place: Place, tensor: torch.Tensor) -> None:
        """Take a copy of a record's decoded tensor into the first tier."""
        nbytes = tensor.numel() * tensor.element_size()
        if not self._decoded.fits(nbytes):
            return
        copy = tensors.snapshot(tensor, copy=True)
        with self._lock:
            place.reads = 0
            gone = self._decoded.put(place.key, (copy, place), nbytes)
        for _, each in gone:
            self._demote(each)

    def stats(self) -> CacheStats:
        """Return what was counted since the last `clear`."""
        with self._lock:
            return CacheStats(
                **self._counts,
                decoded_bytes=self._decoded.nbytes,
                encoded_bytes=self._encoded.nbytes,
                decoded_evictions=self._decoded.evictions,
                encoded_evictions=self._encoded.evictions,
            )

    def clear(self) -> None:
        """Drop everything, and count from zero."""
        with self._lock:
            self._clear()

    def after_fork(self) -> None:
        """Replace the lock; what another thread was changing when the process forked is of no use."""
        interrupted, self._lock = self._lock.locked(), threading.Lock()
        if interrupted:
            self._clear()

    def _clear(self) -> None:
        self._places, self._warming = OrderedDict(), OrderedDict()
        self._decoded.clear()
        self._encoded.clear()
        self._counts = dict.fromkeys(
            ("decoded_hits", "encoded_hits", "mapped_hits", "misses", "lookups", "demotions"), 0
        )

    def _reads_enough(self, place: Place) -> bool:
        place.reads += 1
        return place.reads >= self.config.promote_after and self.config.decoded_bytes > 0

    def _take_in(self, key: bytes, source: Source) -> Source:
        """Put a payload into the second tier, verified."""
        if source.location is not None:
            self._check(source.location)
        held = Source(source.reader.in_memory(), None, source.encoding)
        with self._lock:
            self._encoded.put(key, held, held.reader.payload_nbytes)
        return held

    def _demote(self, place: Place) -> None:
        key = place.row.source
        with self._lock:
            place.reads = 0
            if self._encoded.get(key) is not None:
                self._counts["demotions"] += 1
                return
            nbytes = place.source.reader.payload_nbytes
            if not self._encoded.fits(nbytes) or (place.row.page_row is not None and nbytes > _SMALL):
                return
        try:
            self._take_in(key, place.source)
        except (IntegrityError, FormatError):  # damaged since, which who reads it will be told
            return
        with self._lock:
            self._counts["demotions"] += 1
