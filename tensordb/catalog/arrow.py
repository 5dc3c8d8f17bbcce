"""Columns of new records as an Arrow table, which is how many rows reach DuckDB at once.

Imported where it is first needed: loading pyarrow takes longer than all the rest of tensordb.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tensordb.catalog import fields
from tensordb.catalog.fields import FieldType, ListOf, StructOf

if TYPE_CHECKING:
    from tensordb.catalog.records import NewRecords

_SCALARS = {
    "BOOLEAN": pa.bool_(),
    "BIGINT": pa.int64(),
    "DOUBLE": pa.float64(),
    "DATE": pa.date32(),
    "TIMESTAMP": pa.timestamp("us"),
    "VARCHAR": pa.string(),
}

_EXACT: dict[str, set[type]] = {
    "BOOLEAN": {bool, type(None)},
    "DOUBLE": {float, type(None)},
    "BIGINT": {int, type(None)},
    "VARCHAR": {str, type(None)},
}
"""Values that Arrow takes as they are."""


def table_of(new: NewRecords, kind: FieldType | None) -> pa.Table:
    """Return the columns of new records; that of the metadata, if there is one, has the type `kind`."""
    count = len(new.object_ids)
    width = new.object_ids.dtype.itemsize
    columns = {
        "seq": pa.array(np.arange(new.first, new.first + count)),
        "record_id": pa.nulls(count, pa.string()) if new.record_ids is None else pa.array(new.record_ids, pa.string()),
        # Not by Arrow's take(): its compute module alone takes longer to load than all this to run.
        "object_id": pa.Array.from_buffers(pa.binary(width), count, [None, pa.py_buffer(new.object_ids)]),
        "page_row": pa.array(new.page_rows, pa.int32(), mask=new.page_rows < 0),
        "spec_id": pa.array(new.spec_ids, pa.int32()),
        "document": pa.array(new.packed, pa.binary()),
    }
    if isinstance(kind, StructOf):
        columns["metadata"] = _struct_array([each or None for each in new.documents], kind)
    return pa.table(columns)


def _struct_array(values: Sequence[dict[str, Any] | None], kind: StructOf) -> pa.Array:
    """Return documents as a struct column, field by field: a hundred thousand dicts one by one take a second."""
    spellings = {name for value in values if value for name in value}
    if not spellings <= kind.fields.keys() and {n.casefold() for n in spellings} & {n.casefold() for n in kind.fields}:
        values = [fields.coerce(value, kind) for value in values]  # a name is spelled in several ways
    arrays = [
        _array([None if value is None else value.get(name) for value in values], inner)
        for name, inner in kind.fields.items()
    ]
    missing = pa.array([value is None for value in values], pa.bool_())
    return pa.StructArray.from_arrays(arrays, names=list(kind.fields), mask=missing)


def _array(values: Sequence[Any], kind: FieldType) -> pa.Array:
    if isinstance(kind, StructOf):
        return _struct_array(values, kind)
    exact = _EXACT.get(kind) if isinstance(kind, str) else None
    if exact is None or not set(map(type, values)) <= exact:
        values = [fields.coerce(value, kind) for value in values]
    return pa.array(values, _arrow_type(kind))


def _arrow_type(kind: FieldType) -> pa.DataType:
    if isinstance(kind, StructOf):
        return pa.struct([(name, _arrow_type(inner)) for name, inner in kind.fields.items()])
    return pa.list_(_arrow_type(kind.element)) if isinstance(kind, ListOf) else _SCALARS[kind]
