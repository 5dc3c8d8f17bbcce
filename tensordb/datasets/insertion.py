"""Putting tensors into a dataset.

Everything is checked, encoded and written before the catalog is held; one write block then names it all.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import duckdb
import torch

from tensordb import tensors
from tensordb.catalog import datasets, ids, inline, records
from tensordb.catalog.datasets import DatasetRow
from tensordb.catalog.fields import StructOf
from tensordb.catalog.records import NewRecords
from tensordb.datasets import changes
from tensordb.datasets.batching import Batch, Choice, batches
from tensordb.datasets.finding import check_id
from tensordb.datasets.incoming import Incoming
from tensordb.datasets.metadata import MetadataColumn, metadata_length
from tensordb.datasets.schema import DatasetSchema
from tensordb.datasets.streaming import RowStream
from tensordb.datasets.writing import written
from tensordb.encoding.pipeline import prepare
from tensordb.encoding.presets import CompressionConfig
from tensordb.encoding.summing import summarize
from tensordb.encoding.workers import start
from tensordb.engine import Database
from tensordb.engine.stored_config import config_of
from tensordb.errors import (
    AlreadyExistsError,
    DatasetNotFoundError,
    InvalidInputError,
    SchemaValidationError,
    StoreError,
)
from tensordb.model import TensorSpec

_MANY_IDS = 10_000
"""Ids from which on another thread makes them: fewer are made sooner than it wakes."""


@dataclass(frozen=True)
class _Settings:
    """What never changes of a dataset once it is created, and what tells it from another one of its name."""

    identity: tuple[int, dt.datetime]
    schema: DatasetSchema
    config: CompressionConfig | None
    fields: StructOf = field(compare=False)
    """Metadata fields when this was fetched; others may have come since."""

    @classmethod
    def of_new(cls) -> _Settings:
        """Return those of a dataset that is yet to be created."""
        return cls((-1, dt.datetime.min), DatasetSchema(), None, StructOf())


class Inserter:
    """Inserts into the datasets of one database, and remembers their settings between calls."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._settings: dict[str, _Settings] = {}

    def insert(
        self, name: str, tensor: torch.Tensor, metadata: Any, record_id: str | None, default: CompressionConfig
    ) -> str:
        """Insert one record and return its id."""
        given = None if record_id is None else [check_id(record_id)]
        owned = tensors.snapshot(tensors.adopted(tensor))
        settings = self._settings.get(name) if isinstance(name, str) else None
        if settings is not None:
            try:
                return self._insert(name, settings, owned, metadata, given, default)
            except (SchemaValidationError, _DatasetReplacedError):
                if self._fetch_settings(name) == settings:
                    raise
        return self._insert(name, self._fetch_settings(name), owned, metadata, given, default)

    def _insert(
        self,
        name: str,
        settings: _Settings,
        owned: torch.Tensor,
        metadata: Any,
        given: list[str] | None,
        default: CompressionConfig,
    ) -> str:
        settings.schema.check_spec(tensors.spec_of(owned))
        column = MetadataColumn([metadata], settings.schema, "metadata")
        column.finish(1)
        config = settings.config or default
        prepared = prepare(owned, config, name=given[0] if given else None)
        incoming = Incoming()
        with self._db.payloads.writing():
            stored = self._db.writer.put(prepared)
            incoming.add(Batch([0], owned, False, config), stored, summarize(owned))
            known = stored.location is None
            small = stored.encoded.nbytes <= inline.MAX_NBYTES  # belongs into the record's row, or is looked for there
            if not known:
                self._make_durable()
            try:
                return self._commit(name, settings, incoming, given, column, small=small, guess=not known)[0]
            except _ObjectExistsError:  # an equal tensor was stored before, which is rare enough to try without a look
                return self._commit(name, settings, incoming, given, column)[0]

    def insert_many(
        self,
        name: str,
        source: torch.Tensor | Iterable[torch.Tensor],
        metadata: Any,
        record_ids: Sequence[str] | None,
        default: CompressionConfig,
        progress: bool,
    ) -> list[str]:
        """Insert records in one commit and return their ids."""
        given = None if record_ids is None else _check_ids(record_ids)
        source = _stacked(source)
        expected = _expected(source, metadata, given)
        settings = self._fetch_settings(name)
        column = MetadataColumn(metadata, settings.schema)
        with self._db.payloads.writing(), progress_bar(progress, expected, f"insert into {name}") as bar:
            incoming = self._write(source, Choice(settings.config or default, given), settings, column, bar)
            if given is not None and len(given) != incoming.count:
                raise InvalidInputError(
                    f"{len(given)} record ids were given for {incoming.count} tensors; they must match"
                )
            if not incoming.count:
                return []
            return self._commit(name, settings, incoming, given, column)

    def insert_stream(
        self,
        name: str,
        stream: RowStream,
        config: CompressionConfig | None,
        *,
        create: bool,
        bar: Any,
    ) -> list[str]:
        """Insert rows whose tensors, metadata and ids come together, in one commit; return the ids.

        Args:
            name: The dataset.
            stream: The rows.
            config: What they are encoded with; None for the dataset's config, or else the database's.
            create: Create the dataset, in the same commit, where there is none.
            bar: Progress bar to advance, or None.
        """
        new = create and not changes.dataset_exists(self._db, name)
        if new:
            changes.check_new(self._db, name)
        settings = _Settings.of_new() if new else self._fetch_settings(name)
        column = MetadataColumn(stream, settings.schema)
        choice = Choice(config or settings.config or self._db.config, stream.record_ids)
        with self._db.payloads.writing():
            incoming = self._write(stream.tensors(), choice, settings, column, bar)
            given = None if stream.record_ids is None else _check_ids(stream.record_ids)
            if not new:
                return self._commit(name, settings, incoming, given, column) if incoming.count else []
            with self._db.catalog.transaction():
                changes.create_dataset(self._db, name, None, None)
                settings = self._fetch_settings(name)
                return self._commit(name, settings, incoming, given, column) if incoming.count else []

    def _write(self, source: Any, choice: Choice, settings: _Settings, column: MetadataColumn, bar: Any) -> Incoming:
        """Encode and write all that comes, durably, and take over its metadata."""
        incoming = Incoming()
        for batch, stored, statistics in written(self._db, _checked(batches(source, choice), settings)):
            incoming.add(batch, stored, statistics)
            column.take(len(batch.positions))
            if bar is not None:
                bar.update(len(batch.positions))
        column.finish(incoming.count)
        if incoming.count:
            # While the disk is waited for. When this sync fails, the one after it says so.
            synced = start(self._sync_ahead)
            column.prepare(settings.fields)
            synced()
            self._make_durable()
        return incoming

    def _sync_ahead(self) -> None:
        with suppress(StoreError):
            self._db.payloads.flush()

    def _make_durable(self) -> None:
        # Outside of the catalog's block; the commit does it again for what a transaction left pending.
        self._db.payloads.flush()

    def _fetch_settings(self, name: str) -> _Settings:
        with self._db.catalog.read() as con:
            row = self._db.catalog.known.dataset(con, name)
        settings = _Settings(_identity(row), DatasetSchema.of_row(row), config_of(row), row.fields)
        self._settings[row.name] = settings
        return settings

    def _commit(
        self,
        name: str,
        settings: _Settings,
        incoming: Incoming,
        record_ids: list[str] | None,
        column: MetadataColumn,
        *,
        small: bool = False,
        guess: bool = False,
    ) -> list[str]:
        with self._db.catalog.write(f"inserting into {name!r}", keeps_records=True) as con:
            row = self._db.catalog.known.dataset(con, name)
            if _identity(row) != settings.identity:
                raise _DatasetReplacedError(
                    f"dataset {name!r} was deleted and created anew while this was made ready; repeat the insert"
                )
            if record_ids is not None:
                _check_free(con, row, record_ids)
            row = datasets.adapt_fields(con, row, column.fields)
            self._db.catalog.known.remember_dataset(row)
            payload = self._payload_inline(con, row, incoming) if small else None
            if payload is None:
                if not small and any(each.encoded.nbytes <= inline.MAX_NBYTES for each in incoming.stored.values()):
                    self._db.catalog.known.forget_inline()
                self._name(con, incoming, guess=guess and not self._db.catalog.in_transaction)
            identities = self._insert_rows(con, row, incoming, record_ids, column, payload)
        return identities()

    def _payload_inline(self, con: duckdb.DuckDBPyConnection, row: DatasetRow, incoming: Incoming) -> bytes | None:
        """Return the payload for the new record's row; None when its object is to be named instead.

        A record that holds an equal payload gives it up, so that both can name one object.
        """
        ((object_id, stored),) = incoming.stored.items()
        encoded = stored.encoded
        held = self._db.catalog.known.inline(con, row)
        if object_id in held.places:
            taken = inline.take_out(con, row, [(held.places[object_id], object_id)])
            incoming.refs[object_id] += len(taken)
            held.take_out(object_id, encoded.nbytes)
        elif object_id not in held.named and held.has_room(encoded.nbytes):
            return b"".join(encoded.buffers)
        return None

    def _name(self, con: duckdb.DuckDBPyConnection, incoming: Incoming, *, guess: bool) -> None:
        try:
            self._db.writer.name(con, list(incoming.stored.values()), incoming.refs, guess=guess)
        except duckdb.ConstraintException as error:
            if guess:
                raise _ObjectExistsError from error
            raise

    def _insert_rows(
        self,
        con: duckdb.DuckDBPyConnection,
        row: DatasetRow,
        incoming: Incoming,
        record_ids: list[str] | None,
        column: MetadataColumn,
        payload: bytes | None,
    ) -> Callable[[], list[str]]:
        """Insert the records and return what waits for their ids, which are made beside DuckDB's work."""
        catalog = self._db.catalog
        numbers = {spec: catalog.known.spec_id(con, spec, tensors.nbytes_of(spec)) for spec in incoming.specs()}
        object_ids, page_rows, spec_ids, statistics = incoming.columns(numbers)
        first = ids.first_sequence(catalog.known.last_seq(con, row))
        last = first + len(object_ids) - 1
        metadata = (column.documents, column.packed, payload, column.prepared)
        many = len(object_ids) >= _MANY_IDS and record_ids is None
        begin = start if many else _later
        identities = begin(lambda: record_ids or ids.generated_ids(first, last, row.nonce))
        new = NewRecords(first, record_ids, object_ids, page_rows, spec_ids, *metadata, statistics)
        records.insert(con, row, new)
        catalog.known.advance(row, last)
        if payload is not None:
            catalog.known.inline(con, row).add(bytes(object_ids[0]), first, len(payload))
        # Two processes may give the same number, but not to the same object: of these only one is committed.
        catalog.expect((f"SELECT 1 FROM {row.table} WHERE seq = ? AND object_id = ?", [last, bytes(object_ids[-1])]))
        return identities


def _later(work: Callable[[], list[str]]) -> Callable[[], list[str]]:
    return work


class _ObjectExistsError(Exception):
    """A tensor taken for new has an equal one in the catalog; the write was rolled back."""


class _DatasetReplacedError(DatasetNotFoundError):
    """The dataset whose schema and config were applied is gone; another one has its name."""


def _identity(row: DatasetRow) -> tuple[int, dt.datetime]:
    # The number of a deleted dataset may be given again.
    return row.dataset_id, row.created_at


def _checked(source: Iterator[Batch], settings: _Settings) -> Iterator[Batch]:
    for batch in source:
        spec = tensors.spec_of(batch.tensor)
        settings.schema.check_spec(TensorSpec(spec.dtype, spec.shape[1:]) if batch.is_page else spec)
        yield batch


def _stacked(source: Any) -> Any:
    """Return an array as a stacked tensor; anything else stays what it is."""
    is_array = hasattr(source, "__dlpack__") or hasattr(source, "__array_interface__")
    return tensors.adopted(source) if is_array else source


def _expected(source: Any, metadata: Any, record_ids: list[str] | None) -> int | None:
    """Return how many records will come, None if unknown; raise when lengths that are known differ."""
    total = None
    if isinstance(source, torch.Tensor):
        total = source.shape[0] if source.ndim else None
    elif hasattr(source, "__len__"):
        total = len(source)
    rows = metadata_length(metadata)
    if total is not None and rows is not None and rows != total:
        raise InvalidInputError(f"metadata has {rows} rows for {total} tensors; they must match")
    if total is not None and record_ids is not None and len(record_ids) != total:
        raise InvalidInputError(f"{len(record_ids)} record ids were given for {total} tensors; they must match")
    return total


def _check_ids(record_ids: Sequence[str]) -> list[str]:
    if isinstance(record_ids, str) or not isinstance(record_ids, Iterable):
        raise InvalidInputError(f"record_ids is {record_ids!r}; give a list of ids")
    checked = [check_id(each) for each in record_ids]
    if len(set(checked)) != len(checked):
        twice = next(each for position, each in enumerate(checked) if each in set(checked[:position]))
        raise AlreadyExistsError(f"record_ids has {twice!r} twice; an id names one record")
    return checked


def _check_free(con: duckdb.DuckDBPyConnection, row: DatasetRow, record_ids: list[str]) -> None:
    taken = list(records.by_ids(con, row, record_ids))
    if taken:
        raise AlreadyExistsError(
            f"dataset {row.name!r} has a record {taken[0]!r} already; delete it first or choose another id"
        )
    now = ids.first_sequence(None)
    reserved = [each for each in record_ids if (ids.sequence_of(each, row.nonce) or 0) >= now]
    if reserved:
        raise InvalidInputError(f"record id {reserved[0]!r} may be generated for another record yet; choose another id")


def progress_bar(wanted: bool, total: int | None, title: str) -> Any:
    """Return a context of a bar that counts records, or of None."""
    if not wanted:
        return nullcontext()
    from tqdm import tqdm

    return tqdm(total=total, desc=title, unit=" record")
