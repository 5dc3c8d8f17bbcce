"""SQL for snapshots: where the tensors of many records are, column by column, so that they can be read elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import duckdb
import numpy as np

from tensordb.catalog import records
from tensordb.catalog.datasets import DatasetRow
from tensordb.catalog.fields import FieldType, StructOf, quoted
from tensordb.catalog.records import Selection
from tensordb.catalog.rows import registered

if TYPE_CHECKING:
    import pyarrow as pa

_PLACES = (
    "_seq AS seq, _record_id AS own_id, _object_id AS object_id, coalesce(_page_row, -1) AS page_row, "
    "_spec_id AS spec_id, _payload AS payload"
)


def fetch(
    con: duckdb.DuckDBPyConnection, row: DatasetRow, selection: Selection, columns: Mapping[str, str]
) -> pa.Table:
    """Return a row for each record that matches, in order.

    Args:
        con: The connection of a read block.
        row: The dataset.
        selection: Which records.
        columns: SQL expressions over the dataset's view by their names in the result.

    Returns:
        ``seq, own_id`` (None for a generated one)``, object_id, page_row`` (-1 for a whole object)``, spec_id,
        payload`` (None when it is in a segment), and the columns.
    """
    asked = "".join(f", {sql} AS {quoted(name)}" for name, sql in columns.items())
    return records.tabulate(con, row, _PLACES + asked, selection)


def places(con: duckdb.DuckDBPyConnection, object_ids: pa.Array) -> pa.Table:
    """Return ``segment, position, stored_nbytes`` of objects, in their order; -1 for one that is missing."""
    import pyarrow as pa  # loading it takes longer than all the rest of tensordb

    count = len(object_ids)
    numbers = pa.Array.from_buffers(pa.int64(), count, [None, pa.py_buffer(np.arange(count))])  # pa.array loads pandas
    wanted = pa.Table.from_arrays([numbers, object_ids], ["number", "object_id"])
    with registered(con, "wanted_objects", wanted):
        return con.sql(
            "SELECT coalesce(o.segment, -1) AS segment, coalesce(o.position, -1) AS position, "
            "coalesce(o.stored_nbytes, -1) AS stored_nbytes "
            "FROM wanted_objects w LEFT JOIN tensordb.objects o USING (object_id) ORDER BY w.number"
        ).to_arrow_table()


def field_sql(known: StructOf, name: str) -> str | None:
    """Return the SQL of a metadata field, given by its name or a path with dots; None when no record has it."""
    path = _path(known, name) or (_path(known, name[len("metadata.") :]) if name.startswith("metadata.") else None)
    return None if path is None else ".".join(["metadata", *map(quoted, path)])


def _path(known: FieldType, name: str) -> list[str] | None:
    """Return the parts of a path; a name with dots in it comes before a path."""
    if not isinstance(known, StructOf):
        return None
    if name in known.fields:
        return [name]
    for at, letter in enumerate(name):
        if letter == "." and name[:at] in known.fields:
            rest = _path(known.fields[name[:at]], name[at + 1 :])
            if rest is not None:
                return [name[:at], *rest]
    return None
