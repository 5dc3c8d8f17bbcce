"""Compacting what the records of one dataset name: which pages to take apart, and encoding whole objects anew.

Invariant: what was quantized keeps its codes, its parameters and the error that was measured. What others than the
dataset's own records name (checkpoints, weights, differences, other datasets) stays as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from tensordb.catalog import compaction, datasets, records
from tensordb.catalog.compaction import Move, PageRow, WholeRow
from tensordb.catalog.datasets import DatasetRow
from tensordb.catalog.records import Selection
from tensordb.encoding.pipeline import Prepared, prepare
from tensordb.encoding.presets import CompressionConfig
from tensordb.encoding.reading import PayloadReader
from tensordb.encoding.regrouping import RAW, config_like, lossless, without_other_rows
from tensordb.engine.database import Database
from tensordb.engine.paging import GATHERED_NBYTES, PAGE_NBYTES, Gathering, Outcome, current, point_to
from tensordb.engine.sources import open_payload
from tensordb.engine.writer import Stored
from tensordb.errors import DatasetNotFoundError, FormatError, IntegrityError
from tensordb.payloads import Location

_COMMITTED_NBYTES = 64 << 20
_AT_ONCE = 256


def compact_records(
    db: Database, names: Iterable[str], *, min_dead: float, config: CompressionConfig | None
) -> tuple[Outcome, int]:
    """Gather small payloads of these datasets into pages, and encode everything as `config` says if there is one.

    Args:
        db: The database.
        names: Datasets; those that are deleted meanwhile are left out.
        min_dead: Share of dead rows from which a page is taken apart.
        config: None to keep what was applied.

    Returns:
        What became of the records, and how many did not take `config` on.
    """
    with db.catalog.read() as con:
        everything = datasets.fetch_all(con)
        shared = compaction.shared_inline(con, everything)
    outcome, left = Outcome(), 0
    for dataset in everything:
        if dataset.name in set(names):
            try:
                run = _Run(db, dataset, min_dead, config)
                outcome.add(run.run(shared))
                left += run.left
            except DatasetNotFoundError:  # deleted meanwhile
                continue
    return outcome, left


def leave_dead_rows_out(db: Database, name: str, pages: Collection[bytes]) -> Outcome:
    """Write these pages of a dataset anew, with the rows that its records name and no others.

    Other datasets that share a page keep the one that there is.
    """
    with db.catalog.read() as con:
        dataset = db.catalog.known.dataset(con, name)
        found = [page for page in compaction.pages_of(con, dataset) if page.object_id in pages]
    return _Run(db, dataset, 0.0, None).shrink(found)


class _Run:
    """One run over a dataset."""

    def __init__(self, db: Database, dataset: DatasetRow, min_dead: float, config: CompressionConfig | None) -> None:
        self._db = db
        self._dataset = dataset
        self._min_dead = min_dead
        self._config = config
        self._outcome = Outcome()
        self.left = 0

    def run(self, shared: set[bytes]) -> Outcome:
        with self._db.catalog.read() as con:
            row = current(self._db, con, self._dataset)
            pages = [page for page in compaction.pages_of(con, row) if page.records == page.refs]
            total = records.count(con, row, Selection()) if self._config is not None else 0
        chosen = {page.object_id: _dead_rows(page) for page in self._worth_taking_apart(pages)}
        self._outcome.add(Gathering(self._db, self._dataset, chosen, config=self._config, shared=shared).run())
        if self._config is not None:
            self._recode_wholes(self._config)
            self.left = max(0, total - self._outcome.moved - self._outcome.unchanged)
        for page in pages:
            if page.quantization != "none" and self._is_mostly_dead(page):
                self._shrink(page)
        return self._outcome

    def shrink(self, pages: Iterable[PageRow]) -> Outcome:
        for page in pages:
            self._shrink(page)
        return self._outcome

    def _worth_taking_apart(self, pages: Sequence[PageRow]) -> list[PageRow]:
        lossless = [page for page in pages if page.quantization == "none"]
        if self._config is not None:
            return lossless
        small = defaultdict[tuple[int, str], list[PageRow]](list)
        for page in lossless:
            if page.raw_nbytes <= PAGE_NBYTES // 2:
                small[page.spec_id, page.compression].append(page)
        chosen = {page.object_id: page for page in lossless if self._is_mostly_dead(page)}
        for alike in small.values():
            fewest = -(-sum(page.rows * page.record_nbytes for page in alike) // PAGE_NBYTES)
            if len(alike) >= 2 * fewest:
                chosen |= {page.object_id: page for page in alike}
        return list(chosen.values())

    def _is_mostly_dead(self, page: PageRow) -> bool:
        dead = _dead_rows(page)
        return dead > 0 and dead * page.record_nbytes >= self._min_dead * page.raw_nbytes

    def _shrink(self, page: PageRow) -> None:
        """Leave the dead rows of a page out."""
        with self._db.catalog.read() as con:
            named = compaction.page_records(con, current(self._db, con, self._dataset), page.object_id)
            reader = self._opened(page)
        if reader is None or not named:
            return
        rows = sorted({row for _, row in named})
        try:
            prepared = _with_rows(reader, rows)
        except (IntegrityError, FormatError) as error:
            self._note_damage(page.object_id, error)
            return
        if prepared is None:
            return
        with self._db.payloads.writing():
            stored = self._db.writer.append(prepared.encode())
            now = {row: at for at, row in enumerate(rows)}
            new_id = stored.encoded.object_id
            moves = [Move(seq, page.object_id, row, False, new_id, now[row]) for seq, row in named]
            self._outcome.moved += point_to(self._db, self._dataset, [stored], moves)

    def _recode_wholes(self, config: CompressionConfig) -> None:
        after, more, made = b"", True, set[bytes]()
        while more:
            # What is read is opened in the same catalog block: once it ends, others may remove a segment.
            with self._db.catalog.read() as con:
                dataset = current(self._db, con, self._dataset)
                found = compaction.wholes_of(con, dataset, after=after, above_nbytes=GATHERED_NBYTES, limit=_AT_ONCE)
                opened = [(row, self._opened(row)) for row in found if row.object_id not in made]
            more = len(found) == _AT_ONCE
            after = found[-1].object_id if found else after
            made |= self._recode([(row, reader) for row, reader in opened if reader is not None], config)

    def _recode(self, found: Sequence[tuple[WholeRow, PayloadReader]], config: CompressionConfig) -> set[bytes]:
        """Encode objects anew, in commits of bounded bytes; return their new ids."""
        made = set[bytes]()
        while found:
            with self._db.payloads.writing():
                stored, moves, nbytes = list[Stored](), list[Move](), 0
                while found and nbytes < _COMMITTED_NBYTES:
                    (row, reader), *found = found
                    each = self._recoded(row, reader, config)
                    if each is None:
                        continue
                    nbytes += reader.encoding.original_nbytes
                    stored.append(each)
                    moves += [Move(seq, row.object_id, None, False, each.encoded.object_id, None) for seq in row.seqs]
                if moves:
                    self._outcome.moved += point_to(self._db, self._dataset, stored, moves)
                made |= {each.encoded.object_id for each in stored}
        return made

    def _recoded(self, row: WholeRow, reader: PayloadReader, config: CompressionConfig) -> Stored | None:
        try:
            tensor = reader.decode()
        except (IntegrityError, FormatError) as error:
            self._note_damage(row.object_id, error)
            return None
        stored = self._db.writer.put_unless(prepare(tensor, config, name=row.record_id), row.object_id)
        if stored is None:
            self._outcome.unchanged += len(row.seqs)
        return stored

    def _opened(self, row: PageRow | WholeRow) -> PayloadReader | None:
        try:
            return open_payload(self._db.payloads.read(Location(row.segment, row.position, row.stored_nbytes)))
        except (IntegrityError, FormatError) as error:
            self._note_damage(row.object_id, error)
            return None

    def _note_damage(self, object_id: bytes, error: Exception) -> None:
        text = f"object {object_id.hex()} of dataset {self._dataset.name!r}: {error}"
        self._outcome.damaged.setdefault(object_id, text)


def _with_rows(reader: PayloadReader, rows: Sequence[int]) -> Prepared | None:
    if reader.encoding.quantization != "none":
        return without_other_rows(reader, rows)
    return lossless(reader.decode_rows(rows), config_like(reader.encoding) or RAW, reader.encoding.note, page=True)


def _dead_rows(page: PageRow) -> int:
    return page.raw_nbytes // page.record_nbytes - page.rows
