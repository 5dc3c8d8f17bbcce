"""A dataset as Arrow: record batches of bounded bytes, tables, frames, and files of Parquet and Arrow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tensordb.catalog import arrow, documents
from tensordb.errors import ConflictError, MissingDependencyError
from tensordb.exchange.columns import Form, column_of, field_of, form_of
from tensordb.exchange.marks import Marks
from tensordb.exchange.selecting import Column, Item, Selected, document_of, value_of
from tensordb.tensors import snapshot


@dataclass(frozen=True)
class Layout:
    """The columns of an export in Arrow's words."""

    columns: Sequence[Column]
    form: Form
    schema: pa.Schema

    @property
    def has_tensors(self) -> bool:
        """Whether tensors have to be decoded."""
        return any(each.role == "tensor" for each in self.columns)


def layout_of(selected: Selected, columns: Sequence[Column]) -> Layout:
    """Return how columns stand in a schema."""
    form = form_of(selected.specs.values())
    fields = [_field(each, form) for each in columns]
    named: dict[str, Any] = {each.role: each.name for each in columns if each.role != "field"}
    # Of nested fields that were asked for by themselves the path is the name that they have as metadata.
    of_fields = {each.name: ".".join(each.path) for each in columns if each.role == "field"}
    return Layout(columns, form, pa.schema(fields, Marks(**named, fields=of_fields).to_metadata()))


def batches(selected: Selected, layout: Layout, bar: Any = None) -> Iterator[pa.RecordBatch]:
    """Yield the records as record batches, each of bounded bytes."""
    for part in selected.parts(decode=layout.has_tensors, bar=bar):
        yield batch_of(part, layout)


def reader_of(selected: Selected, layout: Layout, bar: Any = None) -> pa.RecordBatchReader:
    """Return a reader that decodes the records as it is read."""
    return pa.RecordBatchReader.from_batches(layout.schema, batches(selected, layout, bar))


def to_table(selected: Selected, columns: Sequence[Column], bar: Any = None) -> pa.Table:
    """Return all records as a table."""
    layout = layout_of(selected, columns)
    return pa.Table.from_batches(batches(selected, layout, bar), layout.schema)


def to_pandas(selected: Selected, columns: Sequence[Column], bar: Any = None) -> Any:
    """Return a DataFrame whose cells of tensors are arrays, or tensors where NumPy lacks the dtype."""
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingDependencyError("to_pandas() needs pandas: pip install 'tensordb[pandas]'") from error
    layout = layout_of(selected, [each for each in columns if each.role != "tensor"])
    wants_tensors = len(layout.columns) < len(columns)
    cells: list[Any] = []
    rest = []
    for part in selected.parts(decode=wants_tensors, bar=bar):
        cells += [cell_of(each.tensor) for each in part]
        rest.append(batch_of(part, layout))
    frame = pa.Table.from_batches(rest, layout.schema).to_pandas(integer_object_nulls=True)
    for place, each in enumerate(columns):
        if each.role == "tensor":
            column = np.empty(len(cells), object)
            for row, cell in enumerate(cells):  # a list of arrays of one shape would become one array
                column[row] = cell
            frame.insert(place, each.name, pd.Series(column, index=range(len(cells)), dtype=object))
    return frame


def to_polars(selected: Selected, columns: Sequence[Column], bar: Any = None) -> Any:
    """Return a DataFrame of polars; tensors of one shape are of its type Array."""
    try:
        import polars as pl
    except ImportError as error:
        raise MissingDependencyError("to_polars() needs polars: pip install 'tensordb[polars]'") from error
    table = to_table(selected, columns, bar)
    for place, field in enumerate(table.schema):
        if isinstance(field.type, pa.FixedShapeTensorType):
            chunks = [_nested(chunk.storage, field.type.shape) for chunk in table.column(place).chunks]
            table = table.set_column(place, field.name, pa.chunked_array(chunks))
    return pl.from_arrow(table)


def write_parquet(file: BinaryIO, selected: Selected, layout: Layout, bar: Any = None) -> None:
    """Write a Parquet file: a row group for each batch.

    Only texts have dictionaries: the elements of tensors hardly come twice.
    """
    texts = [each.name for each in layout.schema if each.type == pa.string()]
    plain = [each.name for each in layout.columns if each.role not in ("tensor", "document")]
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": texts or False}
    with pq.ParquetWriter(file, layout.schema, write_statistics=plain or False, **options) as writer:
        for batch in batches(selected, layout, bar):
            writer.write_batch(batch, row_group_size=max(1, len(batch)))


def write_ipc(file: BinaryIO, selected: Selected, layout: Layout, bar: Any = None) -> None:
    """Write a file of Arrow (Feather version 2), not compressed, so that readers can map it."""
    with pa.ipc.new_file(file, layout.schema) as writer:
        for batch in batches(selected, layout, bar):
            writer.write_batch(batch)


def cell_of(tensor: Any) -> Any:
    """Return a tensor as an array (a scalar where it is 0-d), or as it is where NumPy lacks its dtype."""
    try:
        return snapshot(tensor).numpy()[()]
    except TypeError:
        return tensor


def _field(column: Column, form: Form) -> pa.Field:
    if column.role == "tensor":
        return field_of(form, column.name)
    if column.role == "created_at":
        return pa.field(column.name, pa.timestamp("us", "UTC"))
    if column.role == "document":
        return pa.field(column.name, pa.binary())
    return pa.field(column.name, pa.string() if column.role == "record_id" else arrow.arrow_type(column.kind))


def batch_of(part: Sequence[Item], layout: Layout) -> pa.RecordBatch:
    """Return records as a record batch."""
    unpacked = [document_of(each) for each in part] if any(each.role == "field" for each in layout.columns) else []
    held = {each.name: _values(unpacked, each) for each in layout.columns if each.role == "field"}
    arrays = [_array(part, each, layout, held) for each in layout.columns]
    return pa.RecordBatch.from_arrays(arrays, schema=layout.schema)


def _array(part: Sequence[Item], column: Column, layout: Layout, held: Mapping[str, pa.Array]) -> pa.Array:
    if column.role == "tensor":
        return column_of(layout.form, [each.tensor for each in part if each.tensor is not None])
    if column.role == "record_id":
        return pa.array([each.record_id for each in part], pa.string())
    if column.role == "created_at":
        return pa.array([each.created_at for each in part], pa.timestamp("us", "UTC"))
    return _documents(part, layout, held) if column.role == "document" else held[column.name]


def _values(unpacked: Sequence[Mapping[str, Any]], column: Column) -> pa.Array:
    values = [value_of(each, column.path) for each in unpacked]
    try:
        return arrow.array_of(values, column.kind)
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # Arrow's errors are such ones
        raise ConflictError(
            f"metadata.{'.'.join(column.path)} was given values of another type while it was read; repeat it"
        ) from error


def _documents(part: Sequence[Item], layout: Layout, held: Mapping[str, pa.Array]) -> pa.Array:
    """Return the documents of those rows of which the columns do not say all."""
    names = [".".join(each.path) for each in layout.columns if each.role == "field"]
    columns = [held[each.name].to_pylist() for each in layout.columns if each.role == "field"]
    rows = zip(*columns, strict=True) if columns else ((),) * len(part)
    stored = []
    for item, row in zip(part, rows, strict=True):
        typed = documents.pack(dict(zip(names, row, strict=True)))
        packed = item.packed if item.packed is not None else documents.pack({})
        stored.append(None if packed == typed else packed)
    return pa.array(stored, pa.binary())


def _nested(storage: pa.FixedSizeListArray, shape: Sequence[int]) -> pa.Array:
    values = storage.flatten()
    for size in reversed(shape):
        values = pa.FixedSizeListArray.from_arrays(values, size)
    return values
