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

Positions = NDArray[np.int64]


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
        few = [(begin, end) for begin, end in pairwise(bounds.tolist()) if rows[begin] >= 0 and end - begin < FEW_ROWS]
        many = [(begin, end) for begin, end in pairwise(bounds.tolist()) if rows[begin] < 0 or end - begin >= FEW_ROWS]

        def work(task: int) -> None:
            begin, end = many[task]
            there = places[begin:end]
            number, wanted = int(numbers[begin]), rows[begin:end].astype(np.int64)
            self._guarded(positions[begin:end], there, out, lambda: self._fill_run(number, wanted, there, out))

        if few:
            picked = np.concatenate([np.arange(begin, end) for begin, end in few])
            there = places[picked]
            self._guarded(positions[picked], there, out, lambda: self._fill_few(numbers, rows, few, there, out))
        for_each(len(many), work, worth=2)

    def _fill_run(self, number: int, rows: Positions, places: Positions, out: Rows) -> None:
        """Decode the records of one object."""
        reader = self._reader(number)
        if rows[0] < 0:
            for place in places.tolist():
                reader.decode(out=out.row(place))
        elif not spread_rows(reader, rows, out.addresses(places)):
            stretch = out.stretch(places) if len(places) == reader.spec.shape[0] and _ascending(rows) else None
            if stretch is not None:
                reader.decode(out=stretch)
            elif len(rows) >= _WHOLE_PAGE * reader.spec.shape[0]:
                out.put(places, byte_view(reader.decode()).reshape(reader.spec.shape[0], -1)[rows])
            else:
                out.put(places, byte_view(reader.decode_rows(rows)).reshape(len(rows), -1))

    def _fill_few(
        self,
        numbers: NDArray[np.int32],
        rows: NDArray[np.int32],
        runs: Sequence[tuple[int, int]],
        places: Positions,
        out: Rows,
    ) -> None:
        """Decode single rows of pages, all in one pass."""
        requests = [(self._reader(int(numbers[begin])), rows[begin:end]) for begin, end in runs]
        out.put(places, byte_view(decode_rows_many(requests)).reshape(len(places), -1))

    def apart(self, positions: Positions) -> list[torch.Tensor]:
        """Return the tensors of records of several specs, each spec decoded in one go."""
        specs = self._index.objects.specs[self._index.numbers[positions]]
        result: list[torch.Tensor] = [torch.empty(0)] * len(positions)
        for spec in np.unique(specs):
            chosen = np.flatnonzero(specs == spec)
            for place, tensor in zip(chosen.tolist(), self.tensors(positions[chosen]), strict=True):
                result[place] = tensor
        return result

    def _guarded(self, positions: Positions, places: Positions, out: Rows, work: Callable[[], None]) -> None:
        """Decode records by `work`, or where that finds damage, one by one.

        The error then names the record; none of these may be damaged, if others of its page are.
        """
        try:
            work()
        except (IntegrityError, FormatError):
            for position, place in zip(positions.tolist(), places.tolist(), strict=True):
                out.put(np.array([place]), byte_view(self.tensor(position))[None])

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


def _ascending(numbers: NDArray[Any]) -> bool:
    return int(numbers[-1] - numbers[0]) == len(numbers) - 1 and bool((numbers[1:] > numbers[:-1]).all())
