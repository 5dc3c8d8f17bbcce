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
from tensordb.catalog.records import RECORD_COLUMNS, RecordRow, rows_of

if TYPE_CHECKING:
    import pyarrow as pa

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
        self._values = [columns[name] for name in ("record_id", "object_id", "document")]
        self._row = row

    @classmethod
    def of(cls, con: duckdb.DuckDBPyConnection, row: DatasetRow) -> Mirror | None:
        """Copy a dataset's rows, or return None when they take too much memory."""
        columns = RECORD_COLUMNS.replace("page_row", "coalesce(page_row, -1) AS page_row")
        table = con.sql(f"SELECT {columns} FROM {row.table}").to_arrow_table()
        return cls(table, row) if table.nbytes <= MAX_NBYTES else None

    def find(self, record_ids: Sequence[str]) -> dict[str, RecordRow]:
        """Return the records of generated ids; ids of the user's are left out."""
        numbers = {number for each in record_ids if (number := ids.sequence_of(each, self._row.nonce)) is not None}
        return {row.record_id: row for row in self.by_sequence(numbers)}

    def by_sequence(self, numbers: Collection[int]) -> list[RecordRow]:
        """Return the records of these sequence numbers, in no particular order."""
        if not numbers or not len(self._numbers):
            return []
        wanted = np.fromiter(numbers, np.int64, len(numbers))
        places = np.minimum(np.searchsorted(self._numbers, wanted), len(self._numbers) - 1)
        return self._rows(self._order[places[self._numbers[places] == wanted]])

    def _rows(self, places: np.ndarray[Any, np.dtype[np.int64]]) -> list[RecordRow]:
        seq, created, page_row, spec_id = (column[places].tolist() for column in self._arrays)
        rows = (None if number < 0 else number for number in page_row)
        record_id, object_id, document = (_pick(column, places.tolist()) for column in self._values)
        return rows_of(self._row, zip(seq, record_id, created, object_id, rows, spec_id, document, strict=True))


def _pick(column: pa.Array, places: Sequence[int]) -> list[Any]:
    if column.null_count == len(column):
        return [None] * len(places)
    return [column[place].as_py() for place in places]
