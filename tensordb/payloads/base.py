"""What the rooms above know of payload storage: where bytes are, and the contract that every store keeps.

A store takes encoded bytes and gives back a place; it never looks into the bytes (decoding is `tensordb.encoding`,
and the checksums inside a payload are verified there) and keeps no index (the catalog names every place).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from tensordb.payloads.pins import Pin
    from tensordb.payloads.surroundings import Offsets

ALIGNMENT = 64  # a cache line; a multiple of the 16 bytes that frames want and of every element size
EMPTY = memoryview(b"")


@dataclass(frozen=True, slots=True)
class Location:
    """Where a payload's bytes are.

    Attributes:
        segment: Random positive 63-bit id of the segment.
        offset: First byte, counted from the start of the segment; a multiple of 64 as `append` returns it. A location
            inside another one (to read a part of a payload) may begin anywhere.
        length: Bytes.
    """

    segment: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """One segment as it is now.

    Attributes:
        id: The segment's id, as in `Location.segment`.
        nbytes: Its size with header, padding and dead payloads.
        live: Whether a writer of any process may still append to it, or has yet to commit what it appended, or a pin
            holds it.
    """

    id: int
    nbytes: int
    live: bool


Write: TypeAlias = "Callable[[Sequence[Buffer]], None]"
Produce: TypeAlias = "Callable[[Write], Buffer | None]"


class PayloadStore(Protocol):
    """Append-only storage of payloads; every method may be called from any thread."""

    def append(self, buffers: Sequence[Buffer]) -> Location:
        """Write the buffers one after another as one payload, not yet durable.

        Raises:
            StorageFullError: No space; the store stays usable and nothing written before is affected.
            StoreError: Another fault of the environment.
            ReadOnlyError: The store was opened for reading.
            ConflictError: The store is closed.
        """

    def append_growing(self, lead: int, most: int, produce: Produce) -> Location | None:
        """Write a payload whose first bytes are known last, while the rest is still being made.

        Args:
            lead: How many first bytes those are.
            most: Bytes that the payload will have at most, or hardly more.
            produce: Is called with ``write(buffers)``, which appends to the payload and which threads may call one
                after the other. Returns the first bytes, or None to give the payload up.

        Returns:
            The place; None when the payload was given up.

        Raises:
            StoreError: as for `append`.
        """

    def flush(self) -> None:
        """Make every payload appended so far durable; only then may a catalog row name it.

        Raises:
            StoreError: A sync failed since this thread last flushed: payloads appended since then must not be
                named, they have to be appended again.
        """

    def writing(self) -> AbstractContextManager[None]:
        """Guard append, flush and the catalog's commit: segments written inside cannot be removed before the end."""

    def seal(self) -> None:
        """Let the next append begin another segment, so that the present one can be removed once it is dead."""

    def read(self, location: Location) -> memoryview:
        """Return the bytes as a read-only view that stays valid after `remove` and `close`.

        Raises:
            IntegrityError: The segment is missing, damaged, foreign, or shorter than the location says.
        """

    def check(self, location: Location) -> None:
        """Check again that the bytes behind a view read earlier are still backed, before they are touched.

        Raises:
            IntegrityError: The segment was cut short in the meantime.
        """

    @property
    def released(self) -> int:
        """How many segments were removed, as far as it was noticed: a view of one keeps its bytes and a descriptor."""

    def holds(self, segment: int) -> bool:
        """Tell whether views of a segment cost nothing that the store does not take anyway."""

    def reopen(self) -> None:
        """Look at the files anew from now on, of which some may have been put back from a copy."""

    def damage_around(self, segment: int, offsets: Offsets, lengths: Offsets) -> list[str]:
        """Return what is damaged in a segment around these payloads, a sentence each."""

    def pin(self, segments: Iterable[int]) -> Pin:
        """Keep segments from being removed; to be called while the catalog that names them is held."""

    def segments(self) -> list[SegmentInfo]:
        """List the segments, by id."""

    def remove(self, segment: int) -> bool:
        """Free a segment unless it is live; return whether it was removed."""

    def close(self) -> None:
        """Let go of everything; closing twice is fine. Views stay valid."""


def as_views(buffers: Sequence[Buffer]) -> list[memoryview]:
    """Return the non-empty buffers as flat byte views; raise TypeError for one that is not contiguous."""
    views = (memoryview(buffer) for buffer in buffers)
    # cast copies nothing, and refuses what is not contiguous.
    return [
        view if view.format == "B" and view.ndim == 1 and view.c_contiguous else view.cast("B")
        for view in views
        if view.nbytes
    ]
