"""The rows of one dataset in memory, for many look-ups by id between two writes.

A look-up by id costs DuckDB half a millisecond of parsing and planning; here it is a binary search. A mirror is a copy
of the catalog at one moment: who keeps it drops it with the first write, and with the connection.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np

from tensordb.catalog import ids
from tensordb.catalog.datasets import DatasetRow
from tensordb.catalog.records import RECORD_COLUMNS, RecordRow

if TYPE_CHECKING:
    import pyarrow as pa

Numbers = np.ndarray[Any, np.dtype[np.int64]]

WORTH_IT = 5000
"""A mirror is made after one look-up for so many records since the last write: by then they cost as much as it."""
FEWEST = 8
"""Look-ups before any mirror is made."""
MAX_RECORDS = 500_000
MAX_NBYTES = 128 << 20
MAX_OBJECTS = 50_000
"""Places of objects that are remembered beside mirrors."""


class Mirror:
    """A dataset's rows, ordered by sequence number."""

    def __init__(self, table: pa.Table, row: DatasetRow) -> None:
        """Take the columns of a record table, in any order of rows, with -1 for no page row."""
        columns = {name: table.column(name).combine_chunks() for name in RecordRow._fields}
        numbers: np.ndarray[Any, np.dtype[np.int64]] = columns["seq"].to_numpy()
        self._order = np.argsort(numbers, kind="stable")  # rows lie in order but for those that an update moved
        self._numbers = numbers[self._order]
        created = columns["created_at"].to_numpy(zero_copy_only=False).astype("datetime64[us]")
        self._arrays = [numbers, created, columns["page_row"].to_numpy(), columns["spec_id"].to_numpy()]
        self._values = [_Column(columns[name]) for name in ("record_id", "object_id", "document", "payload")]
        self._row = row

    @classmethod
    def of(cls, con: duckdb.DuckDBPyConnection, row: DatasetRow) -> Mirror | None:
        """Copy a dataset's rows, or return None when they take too much memory."""
        columns = RECORD_COLUMNS.replace("page_row", "coalesce(page_row, -1) AS page_row")
        table = con.sql(f"SELECT {columns} FROM {row.table}").to_arrow_table()
        return cls(table, row) if table.nbytes <= MAX_NBYTES else None

    def find(self, record_ids: Sequence[str]) -> dict[str, RecordRow]:
        """Return the records of generated ids; ids of the user's are left out."""
        asked = list(dict.fromkeys(record_ids))
        known, places = self._places(ids.sequences_of(asked, self._row.nonce))
        # A record with an id of the user's does not go by the one that its number would have given.
        rows = self._rows(places, [asked[index] for index in known.tolist()])
        return {row.record_id: row for row, own in rows if own is None}

    def by_sequence(self, numbers: Collection[int]) -> list[RecordRow]:
        """Return the records of these sequence numbers, in no particular order."""
        wanted = np.fromiter(numbers, np.int64, len(numbers))
        known, places = self._places(wanted)
        generated = ids.generated_ids_of(wanted[known], self._row.nonce)
        return [row if own is None else row._replace(record_id=own) for row, own in self._rows(places, generated)]

    def _places(self, wanted: Numbers) -> tuple[Numbers, Numbers]:
        """Return which of the wanted numbers there are, and their places in the table."""
        if not len(self._numbers):
            return wanted[:0], wanted[:0]
        found = np.minimum(np.searchsorted(self._numbers, wanted), len(self._numbers) - 1)
        known = np.flatnonzero(self._numbers[found] == wanted)
        return known, self._order[found[known]]

    def _rows(self, places: Numbers, generated: Sequence[str]) -> list[tuple[RecordRow, str | None]]:
        """Return the rows with their generated ids, each with the user's own id if it has one."""
        seq, created, page_row, spec_id = (column[places].tolist() for column in self._arrays)
        own, object_id, document, payload = (column.pick(places) for column in self._values)
        page_row = [None if number < 0 else number for number in page_row]
        rows = map(RecordRow, seq, generated, created, object_id, page_row, spec_id, document, payload)
        return list(zip(rows, own, strict=True))


class _Column:
    """Values of an Arrow column of bytes or text, picked without an Arrow scalar each."""

    def __init__(self, column: pa.Array) -> None:
        self._column = column
        self._empty = column.null_count == len(column)
        self._offsets: np.ndarray[Any, Any] | None = None
        if not self._empty and str(column.type) == "binary":
            validity, offsets, data = column.buffers()
            self._column = None
            first, last = column.offset, column.offset + len(column)
            self._offsets = np.frombuffer(offsets, np.int32)[first : last + 1]
            self._data = data.to_pybytes()  # of which a slice is a copy in one step, unlike of Arrow's memory
            bits = None if validity is None else np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little")
            self._valid = np.ones(len(column), bool) if bits is None else bits[first:last].astype(bool)

    def pick(self, places: Numbers) -> list[Any]:
        """Return the values at these places, None for nulls."""
        if self._empty:
            return [None] * len(places)
        if self._offsets is None:
            return [self._column[place].as_py() for place in places.tolist()]
        spans = zip(self._offsets[places].tolist(), self._offsets[places + 1].tolist(), strict=True)
        picked = [self._data[start:end] for start, end in spans]
        valid = self._valid[places]
        return picked if valid.all() else [each if ok else None for each, ok in zip(picked, valid, strict=True)]
