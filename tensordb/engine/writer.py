"""From tensors to catalog rows.

A payload reaches the disk before, and outside of, the catalog's write block; the block then only names it. What was
appended and never named is an orphan, which `gc` reclaims.

An object that was found damaged counts as not stored: an equal one is written, and takes its place for all that name
it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb

from tensordb.catalog import damage, deltas, objects
from tensordb.catalog.deltas import Chain, NewDelta
from tensordb.catalog.inline import MAX_NBYTES
from tensordb.catalog.objects import NewObject
from tensordb.catalog.session import Catalog
from tensordb.encoding.pipeline import EncodedTensor, Prepared
from tensordb.errors import ConflictError
from tensordb.model import Encoding
from tensordb.payloads import Location, PayloadStore


@dataclass(frozen=True, slots=True)
class Stored:
    """An encoded tensor on its way into the catalog: `location` is None while its payload was not written."""

    encoded: EncodedTensor
    location: Location | None
    chain: Chain | None = None
    """The chain that it continues, as a difference from what that began with; None for one stored by itself."""


class BaseGoneError(ConflictError):
    """What tensors were stored as differences from is no longer there; they have to be stored anew."""


class ObjectWriter:
    """Writes payloads and names them."""

    def __init__(self, catalog: Catalog, payloads: PayloadStore, *, forget: Callable[[], None]) -> None:
        """Bind catalog and payloads; `forget` drops the readers of payloads that others took the place of."""
        self._catalog = catalog
        self._payloads = payloads
        self._forget = forget

    def is_stored(self, encoded: EncodedTensor) -> bool:
        """Tell whether an equal object is in the catalog, so that its payload need not be written again.

        Of a small one this is not asked, since writing it again costs less than the look-up.
        """
        if encoded.nbytes <= MAX_NBYTES:
            return False
        with self._catalog.read() as con:
            if self._catalog.known.lacks_object(con, encoded.object_id):
                return False
            return bool(objects.existing(con, [encoded.object_id]) - damage.marked(con).keys())

    def few_stored(self) -> set[bytes] | None:
        """Return the ids of all sound objects in the catalog, None when they are many."""
        with self._catalog.read() as con:
            found = objects.few(con)
            return None if found is None else found - damage.marked(con).keys()

    def put_whole(self, prepared: Prepared, chain: Chain | None = None) -> Stored:
        """Encode and write a tensor that no record's row is for.

        Args:
            prepared: The tensor, prepared with a base if there is a chain to continue.
            chain: That chain; it begins with the base.
        """
        stored = self._put_growing(prepared, wanted=lambda _: True) if prepared.lead is not None else None
        if stored is None:
            stored = self.append(prepared.encode())
        return stored if stored.encoded.base_id is None else replace(stored, chain=chain)

    def put_unless(self, prepared: Prepared, object_id: bytes) -> Stored | None:
        """Encode and write a tensor, unless it comes out as the object it was read from; then return None."""
        same: list[bool] = []

        def differs(encoded: EncodedTensor) -> bool:
            same.append(encoded.object_id == object_id)
            return not same[-1]

        stored = self._put_growing(prepared, wanted=differs) if prepared.lead is not None else None
        if stored is None and not any(same):
            encoded = prepared.encode()
            stored = self.append(encoded) if differs(encoded) else None
        return stored

    def put(self, prepared: Prepared) -> Stored:
        """Encode and write a tensor, a large one at once; one that is small, or known to be stored, is not written."""
        grown = self._put_growing(prepared, wanted=self._goes_to_a_segment) if prepared.lead is not None else None
        if grown is not None:
            return grown
        encoded = prepared.encode()
        return self.append(encoded, known=not self._goes_to_a_segment(encoded))

    def _put_growing(self, prepared: Prepared, *, wanted: Callable[[EncodedTensor], bool]) -> Stored | None:
        """Write a tensor while it is encoded; None where raw is preferred, or what came out is not `wanted`."""
        made: list[EncodedTensor] = []

        def produce(write: Callable[[Sequence[Any]], None]) -> bytes | None:
            encoded = prepared.encode_growing(write)
            if encoded is None or not wanted(encoded):
                return None
            made.append(encoded)
            header: bytes = encoded.buffers[0]
            return header

        location = self._payloads.append_growing(prepared.lead or 0, prepared.most, produce)
        return None if location is None else Stored(replace(made[0], buffers=(), seal=None), location)

    def _goes_to_a_segment(self, encoded: EncodedTensor) -> bool:
        """Tell whether a payload is neither for the record's row, nor kept in case an equal object goes meanwhile."""
        return encoded.nbytes > MAX_NBYTES and not self.is_stored(encoded)

    def append(self, encoded: EncodedTensor, *, known: bool = False) -> Stored:
        """Write a payload to a segment, unless it is `known` to be stored."""
        if known:
            return Stored(encoded, None)
        location = self._payloads.append(encoded.buffers)
        if encoded.seal is not None and encoded.encoding.compression == "none":  # then the buffers alias the tensor
            encoded.seal.check()
        return Stored(replace(encoded, buffers=(), seal=None), location)  # what is written need not stay in memory

    def name(
        self,
        con: duckdb.DuckDBPyConnection,
        stored: Sequence[Stored],
        refs: Mapping[bytes, int],
        *,
        guess: bool = False,
    ) -> None:
        """Insert objects into the catalog, inside a write block; equal ones share what is stored already.

        Args:
            con: The block's connection.
            stored: The objects; of equal ones the first is taken.
            refs: How many new records name each of them, by object id.
            guess: Take them for new without a look, which saves a statement. A wrong guess fails the write block
                with DuckDB's ConstraintException.
        """
        unique = {each.encoded.object_id: each for each in reversed(stored)}
        present = set() if guess else objects.existing(con, list(unique))
        if present:
            objects.add_references(con, {key: refs[key] for key in present})
            self._replace(con, {key: unique[key] for key in present & damage.marked(con).keys()})
        new = {key: each for key, each in unique.items() if key not in present}
        objects.add(con, [self._row(each, refs[key]) for key, each in new.items()])
        self._catalog.known.remember_objects(new)
        self._continue_chains(con, new)

    def mend(self, con: duckdb.DuckDBPyConnection, stored: Sequence[Stored]) -> None:
        """Have objects that were found damaged be what was now written of the same content, inside a write block.

        Args:
            con: The block's connection.
            stored: What was written, no pages: differences from what an object holds go by its chunks.
        """
        written = {each.encoded.content_id: each for each in stored}
        marked = damage.marked(con)
        self._replace(con, {key: written[content] for key, content in marked.items() if content in written})

    def _replace(self, con: duckdb.DuckDBPyConnection, damaged: Mapping[bytes, Stored]) -> None:
        sound = {key: each for key, each in damaged.items() if each.encoded.base_id is None}
        if not sound:
            return
        self._catalog.generation.renew(keeps_records=False)  # whoever has a cache may know the damaged place
        damage.replace(con, [self._row(each, 0)._replace(object_id=key) for key, each in sound.items()])
        objects.release(con, deltas.remove(con, list(sound)))
        self._forget()  # no other thread looks anything up before the block ends

    def _continue_chains(self, con: duckdb.DuckDBPyConnection, new: Mapping[bytes, Stored]) -> None:
        chains = {key: each.chain for key, each in new.items() if each.chain is not None}
        if not chains:
            return
        counts = Counter(chain.key_id for chain in chains.values())
        gone = counts.keys() - objects.existing(con, list(counts))
        if gone:
            raise BaseGoneError(f"{len(gone)} bases were deleted by others while differences from them were stored")
        objects.add_references(con, counts)
        added = [
            NewDelta(key, chain.key_id, chain.length + 1, chain.nbytes + new[key].encoded.nbytes)
            for key, chain in chains.items()
        ]
        deltas.add(con, added)

    def _row(self, stored: Stored, refs: int) -> NewObject:
        encoded = stored.encoded
        location = stored.location
        if location is None:  # there was no room inline, or the equal object was deleted since it was seen
            location = self._payloads.append(encoded.buffers)
            self._payloads.flush()  # here, where a failure ends the write: at the commit it might be another's
        return new_object(encoded.object_id, encoded.content_id, encoded.encoding, location, refs)


def new_object(object_id: bytes, content_id: bytes, applied: Encoding, place: Location, refs: int) -> NewObject:
    """Return the catalog's row for an object whose payload is at `place`, with what was `applied` to it."""
    return NewObject(
        object_id=object_id,
        content_id=content_id,
        refs=refs,
        raw_nbytes=applied.original_nbytes,
        stored_nbytes=applied.stored_nbytes,
        compression=applied.compression,
        quantization=applied.quantization,
        relative_l2=applied.error.relative_l2,
        max_abs=applied.error.max_abs,
        segment=place.segment,
        position=place.offset,
    )
