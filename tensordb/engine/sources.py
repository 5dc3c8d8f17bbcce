"""From the catalog's objects to what decodes them, with the bases that some of them are stored as differences from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import torch

from tensordb.catalog import deltas, objects
from tensordb.catalog.deltas import BaseRow
from tensordb.catalog.objects import ObjectRow
from tensordb.encoding.chunks import MAX_BASES
from tensordb.encoding.format import MAGIC
from tensordb.encoding.pipeline import Base
from tensordb.encoding.reading import PayloadReader
from tensordb.errors import FormatError, IntegrityError
from tensordb.model import Encoding
from tensordb.payloads import Location, PayloadStore


@dataclass(frozen=True, slots=True)
class Source:
    """An object ready to be decoded.

    Attributes:
        reader: Its payload.
        location: Its place, None when it is inline.
        encoding: What was applied, for one record: a page's bytes are divided among its rows.
    """

    reader: PayloadReader
    location: Location | None
    encoding: Encoding


@dataclass(frozen=True, slots=True)
class ObjectSource:
    """A whole object, whoever names it, with the object that it is a difference from.

    Attributes:
        base: None if it is stored by itself.
    """

    object_id: bytes
    reader: PayloadReader
    location: Location
    base: ObjectSource | None

    def as_base(self, content_id: bytes) -> Base:
        """Return it as what another tensor may be stored as a difference from; `content_id` is its own."""
        return Base(content_id, self.reader)


class OtherContentError(IntegrityError):
    """What is stored is sound, and something else than what was stored there: nothing of it is to be believed."""


class _Link:
    """Hands a reader its base: which one that is, is known only once the reader was made."""

    base: PayloadReader | None = None

    def __call__(self, content_id: bytes) -> PayloadReader:
        if self.base is None:
            raise IntegrityError(f"the catalog names no base for it, while it is a difference from {content_id.hex()}")
        return self.base


class ObjectSources:
    """Opens and decodes whole objects by their ids."""

    def __init__(self, payloads: PayloadStore) -> None:
        self._payloads = payloads

    def open(self, con: duckdb.DuckDBPyConnection, names: Mapping[bytes, str]) -> dict[bytes, ObjectSource]:
        """Find objects inside a catalog block.

        Args:
            con: The block's connection.
            names: What each object is called in errors, by object id.

        Raises:
            IntegrityError: One is missing, its header is damaged, or its base is missing or another one.
        """
        opened: dict[bytes, ObjectSource] = {}
        for object_id, source in self.try_open(con, names):
            if isinstance(source, Exception):
                raise source
            opened[object_id] = source
        return opened

    def try_open(
        self, con: duckdb.DuckDBPyConnection, names: Mapping[bytes, str]
    ) -> Iterator[tuple[bytes, ObjectSource | Exception]]:
        """Yield what `open` returns, one by one, with the error, whatever it is, in place of what cannot be opened."""
        found = objects.fetch(con, list(names))
        bases = deltas.bases_of(con, list(names))
        opened: dict[bytes, ObjectSource] = {}
        for object_id, name in names.items():
            result: ObjectSource | Exception
            try:
                with naming(name, object_id, None):
                    result = self._opened(object_id, found.get(object_id), bases, opened, MAX_BASES)
            except Exception as error:
                result = error
            yield object_id, result

    def decode(
        self, name: str, source: ObjectSource, *, index: Any = None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the tensor of an object, or what `index` picks of it; into `out` when it is given without an index."""
        with naming(name, source.object_id, source.location):
            self._check(source)
            return source.reader.decode(out=out) if index is None else source.reader.decode_index(index)

    def view(self, name: str, source: ObjectSource) -> torch.Tensor:
        """Return the tensor of an object as one that aliases what is stored.

        Raises:
            InvalidInputError: It is compressed or quantized.
        """
        with naming(name, source.object_id, source.location):
            self._check(source)
            return source.reader.view()

    def verify(self, name: str, source: ObjectSource, content_id: bytes) -> None:
        """Read every byte of an object and of its bases, and compare what it holds with its content id.

        Raises:
            IntegrityError: Something is not what was written.
        """
        with naming(name, source.object_id, source.location):
            self._check(source)
            verify_content(source.reader, content_id)

    def _check(self, source: ObjectSource | None) -> None:
        while source is not None:
            self._payloads.check(source.location)
            source = source.base

    def _opened(
        self,
        object_id: bytes,
        row: ObjectRow | None,
        bases: Mapping[bytes, BaseRow],
        opened: dict[bytes, ObjectSource],
        most: int,
    ) -> ObjectSource:
        if object_id in opened:
            return opened[object_id]
        if row is None:
            raise IntegrityError("the catalog has no such object")
        if not most:
            raise IntegrityError(f"it has more than {MAX_BASES} bases one behind the other")
        location, link = Location(row.segment, row.position, row.stored_nbytes), _Link()
        reader = open_payload(self._payloads.read(location), link)
        base = self._base_of(object_id, reader, bases, opened, most - 1) if reader.base_id is not None else None
        link.base = None if base is None else base.reader
        opened[object_id] = ObjectSource(object_id, reader, location, base)
        return opened[object_id]

    def _base_of(
        self,
        object_id: bytes,
        reader: PayloadReader,
        bases: Mapping[bytes, BaseRow],
        opened: dict[bytes, ObjectSource],
        most: int,
    ) -> ObjectSource:
        row = bases.get(object_id)
        if row is None or row.content_id != reader.base_id:
            raise IntegrityError(f"the catalog does not name the base {(reader.base_id or b'').hex()} it was made from")
        there = ObjectRow(row.base_id, row.stored_nbytes, row.segment, row.position)
        with naming("its base", row.base_id, None):
            return self._opened(row.base_id, there, bases, opened, most)


def verify_content(reader: PayloadReader, content_id: bytes | None) -> None:
    """Read every byte of a payload, and compare what it holds with a content id, where that is known.

    Raises:
        IntegrityError: Something is damaged; OtherContentError when it holds something else.
    """
    reader.verify()
    if content_id is not None and reader.content_id() != content_id:
        raise OtherContentError("what it decodes to is not what was stored, though every checksum matches")


def open_payload(payload: Any, bases: Any = None) -> PayloadReader:
    """Return a reader of bytes that the catalog names as a payload."""
    try:
        return PayloadReader(payload, bases=bases)
    except FormatError as error:
        if bytes(payload[: len(MAGIC)]) != MAGIC:  # the catalog names it as a payload: it was one
            raise IntegrityError(str(error)) from error
        raise


@contextmanager
def naming(name: str, object_id: bytes, location: Location | None) -> Iterator[None]:
    """Add what is read, its object and its place to what is found damaged inside."""
    try:
        yield
    except (IntegrityError, FormatError) as error:
        raise named(error, name, object_id, location) from error


def named(
    error: IntegrityError | FormatError, name: str, object_id: bytes, location: Location | None
) -> IntegrityError | FormatError:
    """Return the error with what was read, its object and its place."""
    place = f"segment {location.segment:016x} at byte {location.offset}" if location else "the catalog"
    return type(error)(f"{name} (object {object_id.hex()} in {place}): {error}")
