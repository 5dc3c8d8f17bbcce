"""From tensors to catalog rows.

A payload reaches the disk before, and outside of, the catalog's write block; the block then only names it. What was
appended and never named is an orphan, which `gc` reclaims.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb

from tensordb.catalog import deltas, objects
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

    def __init__(self, catalog: Catalog, payloads: PayloadStore) -> None:
        self._catalog = catalog
        self._payloads = payloads

    def is_stored(self, encoded: EncodedTensor) -> bool:
        """Tell whether an equal object is in the catalog, so that its payload need not be written again.

        Of a small one this is not asked, since writing it again costs less than the look-up.
        """
        if encoded.nbytes <= MAX_NBYTES:
            return False
        with self._catalog.read() as con:
            if self._catalog.known.lacks_object(con, encoded.object_id):
                return False
            return bool(objects.existing(con, [encoded.object_id]))

    def few_stored(self) -> set[bytes] | None:
        """Return the ids of all objects in the catalog, None when they are many."""
        with self._catalog.read() as con:
            return objects.few(con)

    def put_whole(self, prepared: Prepared, chain: Chain | None = None) -> Stored:
        """Encode and write a tensor that no record's row is for.

        Args:
            prepared: The tensor, prepared with a base if there is a chain to continue.
            chain: That chain; it begins with the base.
        """
        stored = self._put_growing(prepared, any_size=True) if prepared.lead is not None else None
        if stored is None:
            stored = self.append(prepared.encode())
        return stored if stored.encoded.base_id is None else replace(stored, chain=chain)

    def put(self, prepared: Prepared) -> Stored:
        """Encode and write a tensor, a large one at once; one that is small, or known to be stored, is not written."""
        grown = self._put_growing(prepared) if prepared.lead is not None else None
        if grown is not None:
            return grown
        encoded = prepared.encode()
        return self.append(encoded, known=self._stays_whole(encoded))

    def _put_growing(self, prepared: Prepared, *, any_size: bool = False) -> Stored | None:
        """Write a tensor while it is encoded; None where the payload is wanted whole after all."""
        made: list[EncodedTensor] = []

        def produce(write: Callable[[Sequence[Any]], None]) -> bytes | None:
            encoded = prepared.encode_growing(write)
            if encoded is None or (not any_size and self._stays_whole(encoded)):
                return None
            made.append(encoded)
            header: bytes = encoded.buffers[0]
            return header

        location = self._payloads.append_growing(prepared.lead or 0, prepared.most, produce)
        return None if location is None else Stored(replace(made[0], buffers=(), seal=None), location)

    def _stays_whole(self, encoded: EncodedTensor) -> bool:
        """Tell whether a payload is for the record's row, or kept in case the equal object goes before it is named."""
        return encoded.nbytes <= MAX_NBYTES or self.is_stored(encoded)

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
        new = {key: each for key, each in unique.items() if key not in present}
        objects.add(con, [self._row(each, refs[key]) for key, each in new.items()])
        self._catalog.known.remember_objects(new)
        self._continue_chains(con, new)

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
