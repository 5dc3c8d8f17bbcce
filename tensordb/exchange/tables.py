"""Arrow into a dataset: tables, record batches, readers, streams of other libraries, and files of Parquet and Arrow.

Read batch by batch. Of a Parquet file as many rows at a time as have about `CHUNK_NBYTES`, whatever its row groups are.
"""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tensordb.datasets.streaming import Row, Rows
from tensordb.errors import InvalidInputError, TensorDBError
from tensordb.exchange import images
from tensordb.exchange.arrays import CHUNK_NBYTES
from tensordb.exchange.columns import holds_numbers, is_tensor, tensors_of
from tensordb.exchange.marks import Marks, exact, kind_of, marks_of
from tensordb.exchange.rows import Asked, Roles, Source, check_count, check_file, id_of, roles_of

_MOST_ROWS = 16384
"""Rows that become Python's values at a time."""
_BUFFER_NBYTES = 1 << 20
"""Read ahead of each column of a file; without it a whole row group would be."""


def from_arrow(source: Any, asked: Asked, where: str) -> Source:
    """Return the rows of a table, batch, reader or dataset of Arrow, or of what has the Arrow PyCapsule interface."""
    if isinstance(source, pa.RecordBatch):
        return from_batches(source.schema, [source], asked, where, source.num_rows)
    if isinstance(source, pa.Table):
        return from_batches(source.schema, source.to_batches(), asked, where, source.num_rows)
    if isinstance(source, pa.Array | pa.ChunkedArray) or not hasattr(source, "__arrow_c_stream__"):
        source = _as_table(source, where)
    with _named(where):
        if hasattr(source, "scanner"):
            reader = source.scanner(batch_size=1024, batch_readahead=1, fragment_readahead=1).to_reader()
        elif isinstance(source, pa.RecordBatchReader):
            reader = source
        else:
            try:
                reader = pa.RecordBatchReader.from_stream(source)
            except pa.ArrowInvalid:  # the values of one column, such as a Series
                reader = pa.table({"tensor": pa.chunked_array(source)}).to_reader()
    total = getattr(source, "height", None)  # of polars; others would have to run a query
    return from_batches(reader.schema, reader, asked, where, total if isinstance(total, int) else None)


def _as_table(source: Any, where: str) -> Any:
    """Return an array as a table of one column, structs as one of their fields; a dataset of Arrow as it is."""
    if hasattr(source, "scanner"):
        return source
    with _named(where):
        if not isinstance(source, pa.Array | pa.ChunkedArray):
            source = pa.array(source)
        if isinstance(source, pa.StructArray):
            return pa.Table.from_struct_array(source)
        return pa.table({"tensor": source})


def from_ipc(path: Path, asked: Asked) -> Source:
    """Return the rows of a file of Arrow: Feather version 2, or the stream format."""
    with _named(str(path)):
        file = pa.memory_map(str(check_file(path)))
        try:
            reader = pa.ipc.open_file(file)
        except pa.ArrowInvalid:
            file.seek(0)
            stream = pa.ipc.open_stream(file)
            return from_batches(stream.schema, map(_validated, stream), asked, str(path))
        batches = (_validated(reader.get_batch(number)) for number in range(reader.num_record_batches))
        return from_batches(reader.schema, batches, asked, str(path))


def _validated(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch whose offsets lie within its buffers: Arrow itself believes those of a file."""
    batch.validate(full=True)
    return batch


def from_parquet(pattern: Path, asked: Asked) -> Source:
    """Return the rows of a Parquet file, of those that a pattern matches, or of those in a folder, by name."""
    paths = _files(pattern)
    with _named(str(paths[0])):
        schema = pq.read_schema(paths[0])
    total = 0
    for path in paths:
        with _named(str(path)), pq.ParquetFile(path) as file:
            total += file.metadata.num_rows
            if not file.schema_arrow.equals(schema):
                raise InvalidInputError(f"{path} has other columns than {paths[0]}; import the two one by one")
    return from_batches(schema, _parquet_batches(paths), asked, str(pattern), total)


def from_batches(
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    asked: Asked,
    where: str,
    total: int | None = None,
    *,
    local: bool = False,
) -> Source:
    """Return the rows of record batches; with `local` pictures that are files of their own may be read."""
    asked.refuse_rows(where)
    marks = marks_of(schema)
    roles = _roles(schema, marks, asked, where)
    whole = asked.fields is None
    return Source(_rows(_pieces(batches), schema, roles, marks, where, whole=whole, local=local), total)


def _roles(schema: pa.Schema, marks: Marks, asked: Asked, where: str) -> Roles:
    of_tensors = [each.name for each in schema if is_tensor(each) or images.is_image(each.type)]
    if marks.tensor in of_tensors and asked.tensor is None:
        of_tensors = [marks.tensor]
    roles = roles_of(schema.names, of_tensors, asked, where)
    field = schema.field(roles.tensor)
    if not (holds_numbers(field) or images.is_image(field.type)):
        raise InvalidInputError(f"column {field.name!r} of {where} holds {field.type}, which makes no tensors")
    if asked.fields is not None:
        return roles
    ours = {marks.record_id, marks.created_at, marks.document}
    return Roles(roles.tensor, roles.record_id, tuple(name for name in roles.metadata if name not in ours))


def _rows(
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    roles: Roles,
    marks: Marks,
    where: str,
    *,
    whole: bool,
    local: bool,
) -> Iterator[Row | Rows]:
    field = schema.field(roles.tensor)
    names = [marks.fields.get(name, name) for name in roles.metadata]
    # Documents know all the metadata: where only some of it is wanted, the columns say what it is.
    document = marks.document if whole and marks.whole and marks.fields.keys() <= set(roles.metadata) else None
    kinds = {marks.fields[name]: kind_of(schema.field(name).type) for name in marks.fields}
    known = {name: kind for name, kind in kinds.items() if kind is not None}
    first = 0
    with _named(where):
        for batch in batches:
            held = batch.select([*roles.metadata]).rename_columns(names).to_pylist() if names else [None] * len(batch)
            if document is not None:
                packed = batch.column(document).to_pylist()
                held = [
                    each if (found := exact(data, each or {}, known)) is None else found
                    for each, data in zip(held, packed, strict=True)
                ]
            ids = None if roles.record_id is None else list(map(id_of, batch.column(roles.record_id).to_pylist()))
            column = batch.column(roles.tensor)
            check_count(first + len(batch), column.nbytes, where)
            of_images = images.is_image(field.type)
            tensors = (
                images.of_column(column, first, where, local=local) if of_images else tensors_of(column, field, first)
            )
            if isinstance(tensors, torch.Tensor):
                yield Rows(tensors, held, ids)
            else:
                yield from map(Row, tensors, held, repeat(None) if ids is None else ids)
            first += len(batch)


def _pieces(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield batches of few rows and bytes."""
    for batch in batches:
        size = max(1, min(_MOST_ROWS, CHUNK_NBYTES * len(batch) // max(1, batch.nbytes)))
        for start in range(0, len(batch), size):
            yield batch.slice(start, size)


def _parquet_batches(paths: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    for path in paths:
        with _named(str(path)), pq.ParquetFile(path, buffer_size=_BUFFER_NBYTES, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                facts = file.metadata.row_group(group)
                size = max(1, min(_MOST_ROWS, CHUNK_NBYTES * facts.num_rows // max(1, facts.total_byte_size)))
                yield from file.iter_batches(size, row_groups=[group], use_threads=False)


def _files(pattern: Path) -> list[Path]:
    if pattern.is_dir():
        found = sorted(pattern.rglob("*.parquet"))
    elif pattern.exists():
        found = [pattern]
    else:
        found = sorted(map(Path, glob.glob(str(pattern), recursive=True)))
    if not found:
        raise InvalidInputError(f"no Parquet file matches {str(pattern)!r}")
    return list(map(check_file, found))


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    try:
        yield
    except TensorDBError:
        raise
    except (pa.ArrowException, OSError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        # Beside those of Arrow: what Python says of values it has no place for, such as dates after the year 9999.
        raise InvalidInputError(f"{where} cannot be read: {error}; it may be damaged or cut off") from error
