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
from tensordb.encoding.workers import for_each
from tensordb.engine.sources import naming, open_payload
from tensordb.errors import FormatError, IntegrityError, InvalidInputError
from tensordb.feeding.index import Index
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
            return self._apart(positions)
        out = empty(TensorSpec(spec.dtype, (len(positions), *spec.shape)))
        order = np.argsort(self._index.numbers[positions], kind="stable")
        grouped = bool((order[1:] > order[:-1]).all())
        self.fill(positions if grouped else positions[order], out, None if grouped else order)
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

    def fill(self, positions: Positions, out: torch.Tensor, places: Positions | None = None) -> None:
        """Decode records of one spec into rows of a tensor, on all cores.

        Args:
            positions: The records; those of one page should follow each other.
            out: Contiguous, ``[records, …]``.
            places: Row of `out` for each, None for the same order.
        """
        if not out.numel():
            return
        numbers, rows = self._index.numbers[positions], self._index.rows[positions]
        bounds = np.flatnonzero(np.concatenate([[True], numbers[1:] != numbers[:-1], [True]])).tolist()
        at = np.arange(len(positions)) if places is None else places
        flat = byte_view(out).reshape(len(out), -1)
        few: list[tuple[int, int]] = []
        many: list[tuple[int, int]] = []
        for begin, end in pairwise(bounds):
            whole = rows[begin] < 0 or end - begin >= _WHOLE_PAGE * self._page_rows(positions[begin], numbers[begin])
            (many if whole else few).append((begin, end))

        def work(task: int) -> None:
            begin, end = many[task]
            there = at[begin:end]
            self._guarded(
                positions[begin:end],
                there,
                flat,
                lambda: self._fill_run(numbers[begin], rows[begin:end], there, out, flat),
            )

        if few:
            picked = np.concatenate([np.arange(begin, end) for begin, end in few])
            places = at[picked]
            self._guarded(positions[picked], places, flat, lambda: self._fill_few(numbers, rows, few, places, flat))
        for_each(len(many), work)

    def _fill_run(
        self, number: int, rows: NDArray[np.int32], at: Positions, out: torch.Tensor, flat: NDArray[np.uint8]
    ) -> None:
        """Decode the records of one object into the rows `at` of the output."""
        reader = self._reader(int(number))
        first, count = int(at[0]), len(at)
        if rows[0] < 0:
            reader.decode(out=out[first])
            flat[at[1:]] = flat[first]
            return
        in_order = count == reader.spec.shape[0] and _ascending(rows) and _ascending(at)
        if in_order:
            reader.decode(out=out[first : first + count])
        else:
            flat[at] = byte_view(reader.decode()).reshape(reader.spec.shape[0], -1)[rows]

    def _fill_few(
        self,
        numbers: NDArray[np.int32],
        rows: NDArray[np.int32],
        runs: Sequence[tuple[int, int]],
        at: Positions,
        flat: NDArray[np.uint8],
    ) -> None:
        """Decode single rows of pages, all in one pass."""
        requests = [(self._reader(int(numbers[begin])), rows[begin:end]) for begin, end in runs]
        flat[at] = byte_view(decode_rows_many(requests)).reshape(len(at), -1)

    def _apart(self, positions: Positions) -> list[torch.Tensor]:
        """Return records of several specs, each spec decoded in one go."""
        specs = self._index.objects.specs[self._index.numbers[positions]]
        result: list[torch.Tensor] = [torch.empty(0)] * len(positions)
        for spec in np.unique(specs):
            chosen = np.flatnonzero(specs == spec)
            for place, tensor in zip(chosen.tolist(), self.tensors(positions[chosen]), strict=True):
                result[place] = tensor
        return result

    def _guarded(self, positions: Positions, at: Positions, flat: NDArray[np.uint8], work: Callable[[], None]) -> None:
        """Decode records into the rows `at` by `work`, or where that finds damage, one by one.

        The error then names the record; none of these may be damaged, if others of its page are.
        """
        try:
            work()
        except (IntegrityError, FormatError):
            for position, place in zip(positions.tolist(), at.tolist(), strict=True):
                flat[place] = byte_view(self.tensor(position))

    def _page_rows(self, position: Any, number: Any) -> int:
        try:
            shape = self._reader(int(number)).spec.shape
        except (IntegrityError, FormatError):
            self.tensor(int(position))
            raise
        return shape[0] if shape else 1

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
