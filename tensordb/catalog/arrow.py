"""Columns of new records as an Arrow table, which is how many rows reach DuckDB at once.

Imported where it is first needed: loading pyarrow takes longer than all the rest of tensordb.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tensordb.catalog import fields
from tensordb.catalog.datasets import STATISTICS
from tensordb.catalog.documents import Documents
from tensordb.catalog.fields import FieldType, ListOf, StructOf

if TYPE_CHECKING:
    from tensordb.catalog.objects import NewObject
    from tensordb.catalog.records import NewRecords

_SCALARS = {
    "BOOLEAN": pa.bool_(),
    "BIGINT": pa.int64(),
    "DOUBLE": pa.float64(),
    "DATE": pa.date32(),
    "TIMESTAMP": pa.timestamp("us"),
    "VARCHAR": pa.string(),
}

_NUMBERS = {"DOUBLE": np.float64, "BIGINT": np.int64}

_EXACT: dict[str, set[type]] = {
    "BOOLEAN": {bool, type(None)},
    "DOUBLE": {float, type(None)},
    "BIGINT": {int, type(None)},
    "VARCHAR": {str, type(None)},
}
"""Values that Arrow takes as they are."""


@dataclass(frozen=True)
class MetadataColumns:
    """The metadata of new records as Arrow columns.

    Attributes:
        kind: Type of the struct column; None when there is none.
        packed: The stored forms.
        typed: The struct column.
    """

    kind: FieldType | None
    packed: pa.ChunkedArray
    typed: pa.ChunkedArray | None


def packed_column(packed: Sequence[bytes | None]) -> pa.Array:
    """Return stored forms of documents as a column, or a part of one."""
    return pa.array(packed, pa.binary())


def metadata_columns(parts: Sequence[Documents], packed: Sequence[pa.Array], kind: FieldType | None) -> MetadataColumns:
    """Return documents and their stored forms as columns; the documents', if there is one, has the type `kind`."""
    return MetadataColumns(kind, pa.chunked_array(packed), _typed(parts, kind))


def _typed(parts: Sequence[Documents], kind: FieldType | None) -> pa.ChunkedArray | None:
    return pa.chunked_array([_struct_of(part, kind) for part in parts]) if isinstance(kind, StructOf) else None


def table_of(new: NewRecords, kind: FieldType | None) -> pa.Table:
    """Return the columns of new records; that of the metadata, if there is one, has the type `kind`."""
    count = len(new.object_ids)
    width = new.object_ids.dtype.itemsize
    metadata = new.prepared
    if metadata is None:
        metadata = metadata_columns(new.documents, [packed_column(new.packed)], kind)
    elif metadata.kind != kind:
        metadata = MetadataColumns(kind, metadata.packed, _typed(new.documents, kind))
    columns = {
        "seq": pa.array(np.arange(new.first, new.first + count)),
        "record_id": pa.nulls(count, pa.string()) if new.record_ids is None else pa.array(new.record_ids, pa.string()),
        # Not by Arrow's take(): its compute module alone takes longer to load than all this to run.
        "object_id": pa.Array.from_buffers(pa.binary(width), count, [None, pa.py_buffer(new.object_ids)]),
        "page_row": pa.array(new.page_rows, pa.int32(), mask=new.page_rows < 0),
        "spec_id": pa.array(new.spec_ids, pa.int32()),
        "document": metadata.packed,
        "stats": _statistics(new.statistics, count),
    }
    if metadata.typed is not None:
        columns["metadata"] = metadata.typed
    return pa.table(columns)


def _statistics(values: np.ndarray[Any, Any] | None, count: int) -> pa.StructArray:
    if values is None:
        return pa.nulls(count, pa.struct([(name, _SCALARS[kind]) for name, kind in STATISTICS.items()]))
    # Cast by NumPy: Arrow's compute module takes longer to load than all this to run.
    columns = np.ascontiguousarray(values.T)
    missing = np.isnan(columns)
    arrays = []
    for column, gone, kind in zip(columns, missing, STATISTICS.values(), strict=True):
        some = bool(gone.any())
        plain = (np.where(gone, 0.0, column) if some else column).astype(_NUMBERS[kind], copy=False)
        arrays.append(pa.array(plain, mask=gone if some else None))
    return pa.StructArray.from_arrays(arrays, names=list(STATISTICS))


def objects_table(new: Sequence[NewObject]) -> pa.Table:
    """Return the columns of new objects, in the order of the table's."""
    return pa.table(dict(zip(new[0]._fields, map(pa.array, zip(*new, strict=True)), strict=True)))


def _struct_of(part: Documents, kind: StructOf) -> pa.StructArray:
    if isinstance(part, list):
        return _struct_array([each or None for each in part], kind)
    if not part.columns.keys() <= kind.fields.keys():  # a name is spelled otherwise in the dataset, or has no column
        return _struct_array([each or None for each in part.rows()], kind)
    nothing = [None] * len(part.empty)
    arrays = [array_of(part.columns.get(name, nothing), inner) for name, inner in kind.fields.items()]
    return pa.StructArray.from_arrays(arrays, names=list(kind.fields), mask=pa.array(part.empty, pa.bool_()))


def _struct_array(values: Sequence[dict[str, Any] | None], kind: StructOf) -> pa.Array:
    """Return documents as a struct column, field by field: a hundred thousand dicts one by one take a second."""
    spellings = set(chain.from_iterable(filter(None, values)))
    if not spellings <= kind.fields.keys() and {n.casefold() for n in spellings} & {n.casefold() for n in kind.fields}:
        values = [fields.coerce(value, kind) for value in values]  # a name is spelled in several ways
    arrays = [array_of(_field(values, name), inner) for name, inner in kind.fields.items()]
    missing = pa.array([value is None for value in values], pa.bool_())
    return pa.StructArray.from_arrays(arrays, names=list(kind.fields), mask=missing)


def _field(values: Sequence[dict[str, Any] | None], name: str) -> list[Any]:
    try:
        return list(map(itemgetter(name), values))  # type: ignore[arg-type]  # None has no items
    except (KeyError, TypeError):
        return [None if value is None else value.get(name) for value in values]


def array_of(values: Sequence[Any], kind: FieldType) -> pa.Array:
    """Return the values of a metadata field as a column of its type."""
    if isinstance(kind, StructOf):
        return _struct_array(values, kind)
    exact = _EXACT.get(kind) if isinstance(kind, str) else None
    if exact is None or not set(map(type, values)) <= exact:
        values = [fields.coerce(value, kind) for value in values]
    return pa.array(values, arrow_type(kind))


def arrow_type(kind: FieldType) -> pa.DataType:
    """Return the type of a metadata column."""
    if isinstance(kind, StructOf):
        return pa.struct([(name, arrow_type(inner)) for name, inner in kind.fields.items()])
    return pa.list_(arrow_type(kind.element)) if isinstance(kind, ListOf) else _SCALARS[kind]
