"""From catalog rows to tensors.

The catalog says where an object is, its block ends, and decoding goes on without it. Readers of payloads are
remembered by what they read, which never changes, so a remembered reader is never stale. One that met damage is
forgotten: any process may write the object anew, at another place.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import torch

from tensordb.catalog import objects
from tensordb.catalog.objects import ObjectRow
from tensordb.catalog.records import RecordRow
from tensordb.catalog.session import Catalog
from tensordb.encoding.reading import PayloadReader, decode_rows_many
from tensordb.encoding.workers import for_each
from tensordb.engine.caching import Place, TensorCache
from tensordb.engine.sources import Source, named, naming, open_payload, verify_content
from tensordb.errors import FormatError, IntegrityError, InvalidInputError
from tensordb.forks import mend_after_fork
from tensordb.model import Encoding
from tensordb.payloads import Location, PayloadStore

_REMEMBERED = 4096
"""Readers kept; one of an inline payload holds it, at most 8 KiB."""
_PARALLEL_NBYTES = 4 << 20
"""Below this, handing work to threads costs more than they win."""


@dataclass(frozen=True, slots=True)
class Located:
    """Records with the objects that hold them, found in one catalog block and decoded after it."""

    dataset: str
    rows: Sequence[RecordRow]
    sources: dict[bytes, Source]

    def encoding_of(self, row: RecordRow) -> Encoding:
        """Return what was applied to a record."""
        return self.sources[row.source].encoding


class ObjectReader:
    """Finds and decodes objects."""

    def __init__(self, catalog: Catalog, payloads: PayloadStore) -> None:
        self._catalog = catalog
        self._payloads = payloads
        self._remembered: OrderedDict[bytes, Source] = OrderedDict()
        self._lock = threading.Lock()
        self._released = 0
        mend_after_fork(self)

    def after_fork(self) -> None:
        """Replace the lock, which another thread may have held when the process forked."""
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Drop every remembered reader."""
        with self._lock:
            self._remembered.clear()

    def locate(self, con: duckdb.DuckDBPyConnection, dataset: str, rows: Sequence[RecordRow]) -> Located:
        """Find the objects of records, inside a catalog block.

        Raises:
            IntegrityError: An object is missing from the catalog, or its payload's header is damaged.
        """
        sources: dict[bytes, Source] = {}
        missing: dict[bytes, RecordRow] = {}
        with self._lock:
            for row in rows:
                known = self._remembered.get(row.source)
                if known is None:
                    missing.setdefault(row.source, row)
                else:
                    sources[row.source] = known
        if missing:
            named = [row.object_id for row in missing.values() if row.payload is None]
            found = self._catalog.known.objects(con, named) if named else {}
            for key, row in missing.items():
                with _naming(dataset, row, None):
                    sources[key] = self._open(row, found.get(row.object_id))
            self._remember({key: sources[key] for key in missing})
        return Located(dataset, rows, sources)

    def tensor(self, located: Located, *, index: Any = None, out: torch.Tensor | None = None) -> torch.Tensor:
        """Decode the only record of `located`, or what `index` picks of it, into `out` when given."""
        return self._decode_row(located, located.rows[0], index, out)

    def places(self, con: duckdb.DuckDBPyConnection, dataset: str, rows: Sequence[RecordRow]) -> list[Place]:
        """Return what a cache may remember of records, inside a catalog block but no transaction."""
        sources = self.locate(con, dataset, rows).sources
        generation = self._catalog.generation
        generation.open()
        word = generation.records()
        return [Place(row, sources[row.source], word) for row in rows]

    def through(
        self,
        cache: TensorCache,
        dataset: str,
        place: Place,
        *,
        known: bool,
        index: Any = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Decode a record whose tensor no cache has, or what `index` picks of it, from memory if its payload is there.

        `known` says that the catalog was not asked for the place.
        """
        row = place.row
        try:
            source, ripe = cache.source(place, known=known)
            self._check(source)
            tensor = _decode_one(source.reader, row.page_row, index, out)
        except (IntegrityError, FormatError) as error:
            raise self._damaged(error, dataset, row, place.source.location) from error
        if ripe and index is None:
            cache.keep(place, tensor)
        return tensor

    def through_many(
        self, cache: TensorCache, dataset: str, places: Sequence[Place], known: Container[str]
    ) -> list[torch.Tensor]:
        """Decode records whose tensors no cache has, from memory where their payloads are, all together.

        `known` has the ids of those whose place was not asked of the catalog.
        """
        sources: dict[bytes, Source] = {}
        ripe: list[int] = []
        for position, place in enumerate(places):
            row = place.row
            try:
                sources[row.source], enough = cache.source(place, known=row.record_id in known)
            except (IntegrityError, FormatError) as error:
                raise self._damaged(error, dataset, row, place.source.location) from error
            if enough:
                ripe.append(position)
        decoded = self.tensors(Located(dataset, [place.row for place in places], sources))
        for position in ripe:
            cache.keep(places[position], decoded[position])
        return decoded

    def view(self, located: Located, *, index: Any = None) -> torch.Tensor:
        """Return the only record of `located`, or what `index` picks of it, as a tensor that aliases what is stored.

        Raises:
            InvalidInputError: It is compressed or quantized.
        """
        row = located.rows[0]
        source = located.sources[row.source]
        with self._reading(located.dataset, row, source.location):
            self._check(source)
            return source.reader.view(_within(row.page_row, ... if index is None else index))

    def tensors(self, located: Located) -> list[torch.Tensor]:
        """Decode all records of `located` in their order; rows of pages are decoded together, objects in parallel."""
        result: list[torch.Tensor | None] = [None] * len(located.rows)
        whole: list[int] = []
        paged: dict[bytes, list[int]] = {}
        for position, row in enumerate(located.rows):
            if row.page_row is None:
                whole.append(position)
            else:
                paged.setdefault(row.source, []).append(position)
        for position, tensor in zip(whole, self._decode_whole(located, whole), strict=True):
            result[position] = tensor
        if paged:
            self._decode_paged(located, paged, result)
        return [tensor for tensor in result if tensor is not None]

    def whole(self, located: Located) -> tuple[torch.Tensor, bool]:
        """Return the object that holds the only record of `located`: of a page all rows.

        Returns:
            The tensor, and whether it aliases what is stored, as it does where that needs no decoding.
        """
        row = located.rows[0]
        source = located.sources[row.source]
        with self._reading(located.dataset, row, source.location):
            self._check(source)
            try:
                return source.reader.view(), True
            except InvalidInputError:  # its bytes are not those of the tensor
                return source.reader.decode(), False

    def find(self, con: duckdb.DuckDBPyConnection, row: RecordRow) -> ObjectRow | None:
        """Return where a record's object is, past everything remembered; None when it is inline, or nowhere."""
        return objects.fetch(con, [row.object_id]).get(row.object_id) if row.payload is None else None

    def reopen(self, dataset: str, row: RecordRow, found: ObjectRow | None) -> Source:
        """Open a record's object, which `find` found in the same catalog block, past everything remembered."""
        with _naming(dataset, row, None):
            return self._open(row, found)

    def verify(self, dataset: str, row: RecordRow, source: Source, content_id: bytes | None) -> None:
        """Read every byte of a record's object, and compare what it holds with its content id, where that is known.

        Raises:
            IntegrityError: Something is not what was written; OtherContentError when all is, and of something else.
        """
        with _naming(dataset, row, source.location):
            verify_content(source.reader, content_id)

    def verify_alone(self, dataset: str, row: RecordRow, source: Source) -> None:
        """Read what a record needs of its object.

        Raises:
            IntegrityError: Something of it is not what was written.
        """
        with _naming(dataset, row, source.location):
            _decode_one(source.reader, row.page_row, None, None)

    def _decode_whole(self, located: Located, positions: Sequence[int]) -> Iterable[torch.Tensor]:
        rows = [located.rows[position] for position in positions]
        nbytes = sum(located.encoding_of(row).original_nbytes for row in rows)
        if len(rows) < 2 or nbytes < _PARALLEL_NBYTES:
            return [self._decode_row(located, row) for row in rows]
        decoded: list[torch.Tensor] = [torch.empty(0)] * len(rows)

        def work(index: int) -> None:
            decoded[index] = self._decode_row(located, rows[index])

        for_each(len(rows), work)
        return decoded

    def _decode_row(
        self, located: Located, row: RecordRow, index: Any = None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        source = located.sources[row.source]
        try:
            self._check(source)
            return _decode_one(source.reader, row.page_row, index, out)
        except (IntegrityError, FormatError) as error:
            raise self._damaged(error, located.dataset, row, source.location) from error

    def _decode_paged(self, located: Located, paged: dict[bytes, list[int]], result: list[torch.Tensor | None]) -> None:
        alike: dict[tuple[Any, ...], list[bytes]] = {}
        for object_id in paged:
            source = located.sources[object_id]
            with self._reading(located.dataset, located.rows[paged[object_id][0]], source.location):
                self._check(source)
            spec = source.reader.spec
            alike.setdefault((spec.dtype, spec.shape[1:]), []).append(object_id)
        for object_ids in alike.values():
            positions = [position for object_id in object_ids for position in paged[object_id]]
            for position, tensor in zip(positions, self._rows_of(located, paged, object_ids).unbind(), strict=True):
                result[position] = tensor

    def _rows_of(self, located: Located, paged: dict[bytes, list[int]], object_ids: Sequence[bytes]) -> torch.Tensor:
        """Decode the wanted rows of pages whose rows have one spec, in one pass."""
        requests = [
            (located.sources[object_id].reader, [located.rows[position].page_row or 0 for position in paged[object_id]])
            for object_id in object_ids
        ]
        try:
            return decode_rows_many(requests)
        except (IntegrityError, FormatError):
            for object_id in object_ids:  # one by one, to name the record that is damaged
                for position in paged[object_id]:
                    self._decode_row(located, located.rows[position])
            raise

    @contextmanager
    def _reading(self, dataset: str, row: RecordRow, location: Location | None) -> Iterator[None]:
        try:
            yield
        except (IntegrityError, FormatError) as error:
            raise self._damaged(error, dataset, row, location) from error

    def _damaged(
        self, error: IntegrityError | FormatError, dataset: str, row: RecordRow, location: Location | None
    ) -> IntegrityError | FormatError:
        """Forget the reader that met damage, and return the error with what was read."""
        with self._lock:
            self._remembered.pop(row.source, None)
        return named(error, _name(dataset, row), row.object_id, location)

    def _check(self, source: Source) -> None:
        if source.location is not None:
            self._payloads.check(source.location)

    def _open(self, row: RecordRow, found: ObjectRow | None) -> Source:
        location = None
        payload: memoryview | bytes
        if row.payload is not None:
            payload = row.payload
        elif found is None:
            raise IntegrityError("the catalog has no such object")
        else:
            location = Location(found.segment, found.position, found.stored_nbytes)
            payload = self._payloads.read(location)
        reader = open_payload(payload)
        return Source(reader, location, _per_record(reader, row.page_row))

    def _remember(self, sources: dict[bytes, Source]) -> None:
        with self._lock:
            self._let_go()
            self._remembered.update(sources)
            while len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)

    def _let_go(self) -> None:
        """Forget what lies in segments that were removed meanwhile, so that their bytes go back to the disk."""
        if self._released == self._payloads.released:
            return
        self._released = self._payloads.released
        for key, source in list(self._remembered.items()):
            if source.location is not None and not self._payloads.holds(source.location.segment):
                del self._remembered[key]


def _decode_one(reader: PayloadReader, page_row: int | None, index: Any, out: torch.Tensor | None) -> torch.Tensor:
    if page_row is not None:
        tensor = reader.decode_row(page_row) if index is None else reader.decode_index(_within(page_row, index))
    elif index is not None:
        tensor = reader.decode_index(index)
    else:
        return reader.decode(out=out)
    return tensor if out is None else fill(out, tensor)


def _within(page_row: int | None, index: Any) -> Any:
    """Return a record's index as one of the object that holds it."""
    return index if page_row is None else (page_row, *(index if isinstance(index, tuple) else (index,)))


def fill(out: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor into `out` and return that; raise InvalidInputError where they differ in dtype or shape."""
    if out.shape != tensor.shape or out.dtype != tensor.dtype:
        raise InvalidInputError(
            f"out= is {out.dtype} {tuple(out.shape)}; it must be like the result, {tensor.dtype} {tuple(tensor.shape)}"
        )
    with torch.no_grad():  # a parameter is what one reads into
        return out.copy_(tensor)


def _per_record(reader: PayloadReader, page_row: int | None) -> Encoding:
    encoding = reader.encoding
    if page_row is None:
        return encoding
    rows = reader.spec.shape[0]
    return replace(
        encoding,
        original_nbytes=encoding.original_nbytes // rows,
        stored_nbytes=-(-encoding.stored_nbytes // rows),
    )


def _naming(dataset: str, row: RecordRow, location: Location | None) -> AbstractContextManager[None]:
    return naming(_name(dataset, row), row.object_id, location)


def _name(dataset: str, row: RecordRow) -> str:
    return f"record {row.record_id!r} of dataset {dataset!r}"
