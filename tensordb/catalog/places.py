"""Where every record of a dataset is, as arrays: some 20 bytes a record, without ids, metadata and payloads."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb
import numpy as np
from numpy.typing import NDArray

from tensordb.catalog.datasets import DatasetRow

MAX_PLACES = 8_000_000
"""Records, of all datasets together, whose places are remembered beside those of the dataset asked for."""
_COLUMNS = "seq, object_id, coalesce(page_row, -1)::INTEGER AS page_row, spec_id"


@dataclass(frozen=True, eq=False)
class Places:
    """The records of a dataset in insertion order.

    Attributes:
        numbers: Sequence numbers.
        objects: Place of each record's object in `object_ids`.
        page_rows: Row in the object, -1 for a whole one.
        spec_ids: Numbers of their specs.
        object_ids: The objects.
    """

    numbers: NDArray[np.int64]
    objects: NDArray[np.int32]
    page_rows: NDArray[np.int32]
    spec_ids: NDArray[np.int32]
    object_ids: list[bytes]

    def part(self, numbers: NDArray[np.int64]) -> Places:
        """Return the records of some sequence numbers, in their order; all of them must be here."""
        at = np.searchsorted(self.numbers, numbers)
        return Places(numbers, self.objects[at], self.page_rows[at], self.spec_ids[at], self.object_ids)


def fetch(con: duckdb.DuckDBPyConnection, row: DatasetRow) -> Places:
    """Return the places of all records of a dataset."""
    table = con.sql(f"SELECT {_COLUMNS} FROM {row.table}").to_arrow_table()
    numbers = table.column("seq").to_numpy()
    ids = table.column("object_id").combine_chunks().dictionary_encode()
    objects = ids.indices.to_numpy()
    page_rows, spec_ids = (table.column(name).to_numpy() for name in ("page_row", "spec_id"))
    found = Places(numbers, objects, page_rows, spec_ids, ids.dictionary.to_pylist())
    if len(numbers) and not (numbers[1:] > numbers[:-1]).all():  # an update moves rows
        order = np.argsort(numbers)
        return Places(numbers[order], objects[order], page_rows[order], spec_ids[order], found.object_ids)
    return found
