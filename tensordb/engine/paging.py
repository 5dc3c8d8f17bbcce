"""Gathering what is stored in small pieces into pages: inline payloads, small objects, rows of pages that are mostly
dead or small.

Invariants: values, quantization, measured errors and notes stay as they were, unless another config was asked for;
what is quantized is never quantized again. A page is durable before one commit points its records there; what was
deleted or changed meanwhile stays so, and its row in the page is dead. An object that others name too is left to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import duckdb
import torch

from tensordb import tensors
from tensordb.catalog import compaction, objects
from tensordb.catalog.compaction import Candidate, Move
from tensordb.catalog.datasets import DatasetRow
from tensordb.encoding.pipeline import EncodedTensor, encode
from tensordb.encoding.presets import CompressionConfig
from tensordb.encoding.reading import PayloadReader
from tensordb.encoding.regrouping import RAW, config_like, lossless
from tensordb.engine.database import Database
from tensordb.engine.sources import open_payload
from tensordb.engine.stored_config import config_of
from tensordb.engine.writer import Stored
from tensordb.errors import DatasetNotFoundError, FormatError, IntegrityError
from tensordb.model import TensorSpec
from tensordb.payloads import Location

PAGED_NBYTES = 128 << 10
"""Largest tensor that goes into pages; a larger one is read faster as an object of its own."""
PAGE_NBYTES = 4 << 20
"""Raw bytes at which a page is full."""
GATHERED_NBYTES = 32 << 10
"""Largest tensor that was stored by itself and is put into a page later: of a larger one the page saves nothing."""
_OPEN_NBYTES = 64 << 20
"""Raw bytes of unfinished pages, of all configs and notes together."""
_COMMITTED_NBYTES = 32 << 20
"""Raw bytes of the pages that one commit names."""
_AT_ONCE = 1 << 14
_CHOOSING = {name: CompressionConfig(name) for name in ("auto", "best")}


@dataclass
class Outcome:
    """What became of a dataset's records.

    Attributes:
        moved: Records whose payloads were written to another place.
        unchanged: Records that have the config asked for already.
        damaged: What is wrong with the objects that could not be read, which stay where they are.
    """

    moved: int = 0
    unchanged: int = 0
    damaged: dict[bytes, str] = field(default_factory=dict)

    def add(self, other: Outcome) -> None:
        """Take over what became of others."""
        self.moved += other.moved
        self.unchanged += other.unchanged
        self.damaged |= other.damaged


@dataclass(frozen=True, slots=True)
class _Found:
    """A record with the payload that holds it."""

    row: Candidate
    reader: PayloadReader

    @property
    def spec(self) -> TensorSpec:
        spec = self.reader.spec
        return spec if self.row.page_row is None else TensorSpec(spec.dtype, spec.shape[1:])


class _OpenPage:
    """A page being filled."""

    def __init__(self, spec: TensorSpec, config: CompressionConfig, note: str | None) -> None:
        self.config, self.note = config, note
        self.rows: list[Candidate] = []
        self._spec = spec
        self._capacity = max(1, PAGE_NBYTES // tensors.nbytes_of(spec))
        self._stack = tensors.empty(TensorSpec(spec.dtype, (0, *spec.shape)))

    @property
    def is_full(self) -> bool:
        return len(self.rows) == self._capacity

    @property
    def nbytes(self) -> int:
        return len(self.rows) * tensors.nbytes_of(self._spec)

    @property
    def is_page(self) -> bool:
        """Whether there is more than one record; one alone is a whole tensor."""
        return len(self.rows) > 1

    def next_row(self) -> torch.Tensor:
        """Return the memory of the next row; it counts once its record is in `rows`."""
        if len(self.rows) == self._stack.shape[0]:
            rows = min(self._capacity, max(8, 2 * len(self.rows)))
            stack = tensors.empty(TensorSpec(self._spec.dtype, (rows, *self._spec.shape)))
            stack[: len(self.rows)] = self._stack
            self._stack = stack
        return self._stack[len(self.rows)]

    def encoded(self, *, anew: bool) -> EncodedTensor:
        """Return the page encoded; `anew` lets its config quantize it."""
        tensor = self._stack[: len(self.rows)] if self.is_page else self._stack[0].clone()
        if anew:
            return encode(tensor, self.config, page=self.is_page)
        return lossless(tensor, self.config, self.note, page=self.is_page).encode()

    def moves(self, object_id: bytes) -> list[Move]:
        """Return how the records get here from where they were found."""
        return [
            Move(row.seq, row.object_id, row.page_row, row.payload is not None, object_id, at if self.is_page else None)
            for at, row in enumerate(self.rows)
        ]


class Gathering:
    """One run over the records of a dataset."""

    def __init__(
        self,
        db: Database,
        dataset: DatasetRow,
        pages: dict[bytes, int],
        *,
        config: CompressionConfig | None,
        shared: set[bytes],
    ) -> None:
        """Bind a dataset.

        Args:
            db: The database.
            dataset: As the catalog has it now.
            pages: Lossless pages whose rows are to go into others, with the number of dead rows of each.
            config: What to encode everything with; None to keep what was applied.
            shared: Objects that lie inline in other datasets too, and are to be shared instead.
        """
        self._db = db
        self._dataset = dataset
        self._pages = pages
        self._config = config
        self._shared = shared
        self._in_force = config_of(dataset) or db.config
        self._raw: dict[TensorSpec, CompressionConfig] = {}
        self._open: dict[tuple[TensorSpec, int, str | None], _OpenPage] = {}
        self._open_nbytes = 0
        self._full: list[_OpenPage] = []
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Gather all there is.

        Raises:
            StoreError: The environment failed; what was committed before stays.
        """
        try:
            for _, parts in groupby(self._windows(), lambda found: found[0].row.spec_id):
                for found in parts:
                    self._take_all(found)
                self._finish()
            self._commit()
        except DatasetNotFoundError:  # deleted meanwhile
            pass
        return self.outcome

    def _windows(self) -> Iterator[list[_Found]]:
        """Yield records of one spec each, by spec and in insertion order."""
        after, more = (-1, -1), True
        while more:
            rows, found = self._look_up(after)
            more = len(rows) == _AT_ONCE
            after = (rows[-1].spec_id, rows[-1].seq) if rows else after
            for _, alike in groupby(found, lambda each: each.row.spec_id):
                yield list(alike)

    def _look_up(self, after: tuple[int, int]) -> tuple[list[Candidate], list[_Found]]:
        # What is read is opened in the same catalog block: once it ends, others may remove a segment.
        with self._db.catalog.read() as con:
            dataset = current(self._db, con, self._dataset)
            rows = compaction.candidates(
                con, dataset, list(self._pages), after=after, most_nbytes=GATHERED_NBYTES, limit=_AT_ONCE
            )
            inline = [row.object_id for row in rows if row.payload is not None]
            named = objects.existing(con, inline) | self._shared if inline else self._shared
            opened: dict[bytes, PayloadReader | None] = {}
            found = []
            for row in rows:
                if row.payload is not None and row.object_id in named:
                    continue
                if row.object_id not in opened:
                    opened[row.object_id] = self._opened(row)
                reader = opened[row.object_id]
                if reader is not None and _fits(reader, row):
                    found.append(_Found(row, reader))
        return rows, found

    def _opened(self, row: Candidate) -> PayloadReader | None:
        try:
            if row.payload is not None:
                return open_payload(row.payload)
            place = Location(row.segment or 0, row.position or 0, row.stored_nbytes or 0)
            return open_payload(self._db.payloads.read(place))
        except (IntegrityError, FormatError) as error:
            self._note_damage(row, error)
            return None

    def _note_damage(self, row: Candidate, error: Exception) -> None:
        if row.payload is None:  # of those that lie inline, whoever moves them says so
            self.outcome.damaged.setdefault(
                row.object_id, f"object {row.object_id.hex()} of dataset {self._dataset.name!r}: {error}"
            )

    def _take_all(self, found: Sequence[_Found]) -> None:
        for reader, part in groupby(found, lambda each: each.reader):
            records = list(part)
            if records[0].row.page_row is None:
                self._take(records[0], None)
                continue
            rows = [each.row.page_row or 0 for each in records]
            try:
                decoded: torch.Tensor | None = reader.decode_rows(rows)
            except (IntegrityError, FormatError):
                decoded = None  # row by row, so that what is sound goes on
            for at, each in enumerate(records):
                self._take(each, None if decoded is None else decoded[at])

    def _take(self, found: _Found, decoded: torch.Tensor | None) -> None:
        """Put a record into the open page of its kind."""
        page = self._page_for(found)
        room = page.next_row()
        try:
            if found.row.page_row is None:
                found.reader.decode(out=room)
            else:
                room.copy_(found.reader.decode_rows([found.row.page_row])[0] if decoded is None else decoded)
        except (IntegrityError, FormatError) as error:
            self._note_damage(found.row, error)
            return
        page.rows.append(found.row)
        self._open_nbytes += found.reader.encoding.original_nbytes if found.row.page_row is None else room.nbytes
        if page.is_full:
            self._close(page)
        elif self._open_nbytes > _OPEN_NBYTES:
            self._finish()

    def _page_for(self, found: _Found) -> _OpenPage:
        config, note = self._config_for(found), found.reader.encoding.note
        key = found.spec, id(config), note
        page = self._open.get(key)
        if page is None:
            page = self._open[key] = _OpenPage(found.spec, config, note)
        return page

    def _config_for(self, found: _Found) -> CompressionConfig:
        if self._config is not None:
            return self._config.for_tensor(found.row.record_id, found.spec)
        like = config_like(found.reader.encoding)
        if like is not None:
            return like
        if found.row.page_row is not None:
            return RAW
        if found.spec not in self._raw:
            self._raw[found.spec] = self._raw_or_not(found)
        return self._raw[found.spec]

    def _raw_or_not(self, found: _Found) -> CompressionConfig:
        """Return what records that are stored raw are paged with.

        Raw is what was asked for, or all that the config in force can do for so small a tensor by itself; in a page it
        can do more.
        """
        in_force = self._in_force.for_tensor(found.row.record_id, found.spec)
        if in_force.compression not in ("auto", "best"):
            return RAW
        config = _CHOOSING[in_force.compression]
        try:
            alone = encode(found.reader.decode(), config)
        except (IntegrityError, FormatError):
            return RAW
        return config if alone.encoding.compression == "none" else RAW

    def _finish(self) -> None:
        for page in list(self._open.values()):
            self._close(page)

    def _close(self, page: _OpenPage) -> None:
        self._open = {key: each for key, each in self._open.items() if each is not page}
        self._open_nbytes = sum(each.nbytes for each in self._open.values())
        if not self._is_worth_it(page):
            return
        self._full.append(page)
        if sum(each.nbytes for each in self._full) >= _COMMITTED_NBYTES:
            self._commit()

    def _is_worth_it(self, page: _OpenPage) -> bool:
        if not page.rows or self._config is not None:
            return bool(page.rows)
        sources = {row.object_id for row in page.rows}
        if len(sources) == 1:
            # A whole object stays one; of a page that found no other to go with, only dead rows are left out.
            return page.rows[0].page_row is not None and self._pages[page.rows[0].object_id] > 0
        return True

    def _commit(self) -> None:
        """Write the pages that are full, and name them."""
        pages, self._full = self._full, []
        with self._db.payloads.writing():
            moves: list[Move] = []
            stored: list[Stored] = []
            for page in pages:
                encoded = page.encoded(anew=self._config is not None)
                if {row.object_id for row in page.rows} == {encoded.object_id}:
                    self.outcome.unchanged += len(page.rows)
                    continue
                stored.append(self._db.writer.append(encoded))
                moves += page.moves(encoded.object_id)
            if moves:
                self.outcome.moved += point_to(self._db, self._dataset, stored, moves)


def current(db: Database, con: duckdb.DuckDBPyConnection, dataset: DatasetRow) -> DatasetRow:
    """Return a dataset as it is now, inside a catalog block.

    Raises:
        DatasetNotFoundError: It was deleted, perhaps with another one of its name created since.
    """
    now = db.catalog.known.dataset(con, dataset.name)
    if (now.dataset_id, now.created_at) != (dataset.dataset_id, dataset.created_at):
        raise DatasetNotFoundError(f"dataset {dataset.name!r} was deleted meanwhile")
    return now


def point_to(db: Database, dataset: DatasetRow, stored: Sequence[Stored], moves: Sequence[Move]) -> int:
    """Have records name what was written, in one commit inside a `writing` block; return how many do now."""
    db.payloads.flush()
    with db.catalog.write("compacting") as con:
        there = compaction.repoint(con, current(db, con, dataset), moves)
        done = [move for move in moves if move.seq in there]
        refs = Counter(move.new_id for move in done)
        db.writer.name(con, [each for each in stored if each.encoded.object_id in refs], refs)
        objects.release(con, Counter(move.object_id for move in done if not move.inline))
        db.catalog.known.forget_inline()
    db.reader.forget()
    return len(done)


def _fits(reader: PayloadReader, row: Candidate) -> bool:
    """Tell whether a record may go into a page: what is quantized stays as it is."""
    if reader.encoding.quantization != "none" or reader.base_id is not None:
        return False
    return row.page_row is not None or 0 < reader.encoding.original_nbytes <= GATHERED_NBYTES
