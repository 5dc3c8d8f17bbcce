"""From positions in a snapshot to tensors, in any process: mapped segments and an index, nothing of DuckDB.

Payload headers are parsed once and remembered; checksums are verified on every read. Damage is named by its record.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tensordb.encoding.reading import PayloadReader, decode_rows_many
from tensordb.encoding.spreading import FEW_ROWS, spread_rows
from tensordb.encoding.workers import for_each
from tensordb.engine.sources import naming, open_payload
from tensordb.errors import FormatError, IntegrityError, InvalidInputError
from tensordb.feeding.index import Index
from tensordb.feeding.room import Rows
from tensordb.forks import mend_after_fork
from tensordb.model import TensorSpec
from tensordb.payloads import Location, PayloadStore, SegmentStore
from tensordb.tensors import byte_view, empty

_REMEMBERED = 512
"""Readers of payloads that are kept; one of a page takes some 50 KB."""
_WHOLE_PAGE = 0.4
"""Share of a page's rows from which on it is faster to decode all of it."""
_TASK_NBYTES = 2 << 20
"""Raw bytes of records that one thread decodes at a time, if they are not of one page."""

Positions = NDArray[np.int64]
Requests = list[tuple[PayloadReader, Positions]]
"""Pages, or objects, with rows of each."""


class Source:
    """Decodes the tensors of an index.

    Args:
        index: Where they are.
        folder: The database's folder, None for one in memory.
        database_id: What its segments' headers must name.
        store: The payloads of a database in memory.
    """

    def __init__(self, index: Index, folder: Path | None, database_id: bytes, store: PayloadStore | None) -> None:
        self._index = index
        self._folder = folder
        self._database_id = database_id
        self._store = store
        self._readers: OrderedDict[int, PayloadReader] = OrderedDict()
        self._lock = threading.Lock()
        mend_after_fork(self)

    def after_fork(self) -> None:
        """Replace the lock, which another thread may have held when the process forked."""
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Callable[..., Source], tuple[Any, ...]]:
        if self._folder is None:
            raise InvalidInputError(
                "a dataset of a database in memory cannot be pickled for another process; store it in a folder, or use "
                "workers that are forked (multiprocessing_context='fork')"
            )
        return Source, (self._index, self._folder, self._database_id, None)

    def tensor(self, position: int) -> torch.Tensor:
        """Return the tensor of one record.

        Raises:
            IntegrityError: Its stored bytes are damaged.
        """
        number, row = int(self._index.numbers[position]), int(self._index.rows[position])
        (name,) = self._index.record_ids.pick(np.array([position]))
        with naming(
            f"record {name!r} of dataset {self._index.dataset!r}",
            self._index.objects.id_of(number),
            self._location(number),
        ):
            reader = self._reader(number)
            return reader.decode() if row < 0 else reader.decode_rows([row])[0]

    def tensors(self, positions: Positions) -> torch.Tensor | list[torch.Tensor]:
        """Return the tensors of records: stacked where they have one spec, else a list."""
        spec = self.common_spec(positions)
        if spec is None:
            return self.apart(positions)
        out = empty(TensorSpec(spec.dtype, (len(positions), *spec.shape)))
        if out.numel():
            order = np.argsort(self._index.numbers[positions], kind="stable")
            self.fill(positions[order], Rows([out]), order)
        return out

    def common_spec(self, positions: Positions) -> TensorSpec | None:
        """Return the spec that all these records have, None if they differ or there are none."""
        if not len(positions):
            return None
        specs = self._index.objects.specs
        if len(self._index.specs) > 1:
            found = specs[self._index.numbers[positions]]
            if (found != found[0]).any():
                return None
        return self._index.specs[int(specs[self._index.numbers[positions[0]]])]

    def fill(self, positions: Positions, out: Rows, places: Positions) -> None:
        """Decode records of one spec, on all cores, each to a row of its own.

        Args:
            positions: The records; those of one page should follow each other.
            out: Where they belong.
            places: Row of `out` for each.
        """
        numbers, rows = self._index.numbers[positions], self._index.rows[positions]
        bounds = np.flatnonzero(np.concatenate([[True], numbers[1:] != numbers[:-1], [True]]))
        few, tasks, room = list[tuple[int, int]](), list[list[tuple[int, int]]](), 0
        for begin, end in pairwise(bounds.tolist()):
            if rows[begin] >= 0 and end - begin < FEW_ROWS:
                few.append((begin, end))
                continue
            # One run, or several small ones: what a call costs is then nothing beside what it does.
            if room < end - begin:
                tasks.append([])
                room = _TASK_NBYTES // out.row_nbytes
            tasks[-1].append((begin, end))
            room -= end - begin
        if few:
            self._fill_task(self._fill_few, positions, few, places, out)

        def work(task: int) -> None:
            self._fill_task(self._fill_runs, positions, tasks[task], places, out)

        for_each(len(tasks), work, worth=2)

    def _fill_task(
        self,
        fill: Callable[[Requests, Positions, Rows], None],
        positions: Positions,
        runs: Sequence[tuple[int, int]],
        places: Positions,
        out: Rows,
    ) -> None:
        """Decode runs of records by `fill`, or where that finds damage, one by one.

        The error then names the record; none of these may be damaged, if others of its page are.
        """
        picked = np.concatenate([np.arange(begin, end) for begin, end in runs])
        mine, there = positions[picked], places[picked]
        try:
            numbers, rows = self._index.numbers, self._index.rows
            heads = [(positions[begin], positions[begin:end]) for begin, end in runs]
            fill([(self._reader(int(numbers[head])), rows[run].astype(np.int64)) for head, run in heads], there, out)
        except (IntegrityError, FormatError):
            for position, place in zip(mine.tolist(), there.tolist(), strict=True):
                out.put(np.array([place]), byte_view(self.tensor(position))[None])

    @staticmethod
    def _fill_few(requests: Requests, places: Positions, out: Rows) -> None:
        """Decode single rows of pages, all in one pass."""
        out.put(places, byte_view(decode_rows_many(requests)).reshape(len(places), -1))

    @staticmethod
    def _fill_runs(requests: Requests, places: Positions, out: Rows) -> None:
        """Decode many rows of each page, or whole objects."""
        if all(rows[0] >= 0 for _, rows in requests) and spread_rows(requests, out.addresses(places)):
            return
        at = 0
        for reader, rows in requests:
            _fill_run(reader, rows, places[at : at + len(rows)], out)
            at += len(rows)

    def apart(self, positions: Positions) -> list[torch.Tensor]:
        """Return the tensors of records of several specs, each spec decoded in one go."""
        specs = self._index.objects.specs[self._index.numbers[positions]]
        result: list[torch.Tensor] = [torch.empty(0)] * len(positions)
        for spec in np.unique(specs):
            chosen = np.flatnonzero(specs == spec)
            for place, tensor in zip(chosen.tolist(), self.tensors(positions[chosen]), strict=True):
                result[place] = tensor
        return result

    def _reader(self, number: int) -> PayloadReader:
        location = self._location(number)
        with self._lock:
            reader = self._readers.get(number)
            if reader is not None:
                self._readers.move_to_end(number)
        if reader is None:
            reader = open_payload(self._payload(number, location))
            with self._lock:
                self._readers[number] = reader
                while len(self._readers) > _REMEMBERED:
                    self._readers.popitem(last=False)
        elif location is not None:
            self._payloads().check(location)
        return reader

    def _location(self, number: int) -> Location | None:
        objects = self._index.objects
        segment = int(objects.segments[number])
        return Location(segment, int(objects.positions[number]), int(objects.sizes[number])) if segment > 0 else None

    def _payload(self, number: int, location: Location | None) -> memoryview:
        objects = self._index.objects
        if location is not None:
            return self._payloads().read(location)
        if objects.segments[number] < 0:
            raise IntegrityError("the catalog has no such object")
        begin = int(objects.positions[number])
        return memoryview(objects.inline)[begin : begin + int(objects.sizes[number])]

    def _payloads(self) -> PayloadStore:
        if self._store is None:
            assert self._folder is not None
            self._store = SegmentStore(self._folder / "segments", read_only=True, database_id=self._database_id)
        return self._store


def _fill_run(reader: PayloadReader, rows: Positions, places: Positions, out: Rows) -> None:
    """Decode the records of one object."""
    if rows[0] < 0:
        for place in places.tolist():
            reader.decode(out=out.row(place))
        return
    count = reader.spec.shape[0]
    stretch = out.stretch(places) if len(places) == count and _ascending(rows) else None
    if stretch is not None:
        reader.decode(out=stretch)
    elif len(rows) >= _WHOLE_PAGE * count:
        out.put(places, byte_view(reader.decode()).reshape(count, -1)[rows])
    else:
        out.put(places, byte_view(reader.decode_rows(rows)).reshape(len(rows), -1))


def _ascending(numbers: NDArray[Any]) -> bool:
    return int(numbers[-1] - numbers[0]) == len(numbers) - 1 and bool((numbers[1:] > numbers[:-1]).all())
