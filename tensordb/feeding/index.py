"""The index of a snapshot: where the tensor of each record is, in a few numbers a record, and nothing of DuckDB.

It is taken in one catalog block, in which the segments that it names are pinned; it is small to pickle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from tensordb.catalog import snapshots, specs
from tensordb.catalog.datasets import DatasetRow
from tensordb.catalog.records import Selection
from tensordb.errors import InvalidInputError
from tensordb.feeding.columns import Column, RecordIds, column_of, numbers_of
from tensordb.feeding.packing import packed, unpacked
from tensordb.model import TensorSpec
from tensordb.tensors import nbytes_of

if TYPE_CHECKING:
    import pyarrow as pa

ID_NBYTES = 16
TENSOR, RECORD_ID, CREATED_AT = "tensor", "record_id", "created_at"

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects that a snapshot names.

    Attributes:
        ids: 16 bytes each.
        segments: Segment of each; 0 when its payload is in `inline`, -1 when the catalog has no such object.
        positions: First byte there.
        sizes: Bytes of each payload.
        specs: Number of the spec of a record in each.
        inline: Payloads that lie in no segment, one after the other.
    """

    ids: bytes
    segments: NDArray[np.int64]
    positions: NDArray[np.int64]
    sizes: NDArray[np.int64]
    specs: NDArray[np.int32]
    inline: bytes

    def __len__(self) -> int:
        return len(self.segments)

    def id_of(self, number: int) -> bytes:
        """Return the id of an object."""
        return self.ids[ID_NBYTES * number : ID_NBYTES * (number + 1)]


@dataclass(frozen=True, eq=False)
class Index:
    """Records of a dataset as they were, in order.

    Attributes:
        dataset: Its name.
        objects: The objects.
        specs: The specs that records have.
        nbytes: Raw bytes of a record of each spec.
        numbers: Object of each record.
        rows: Row of each record in its object, -1 for a whole one.
        record_ids: Ids of the records.
        columns: What else was asked for, by name.
    """

    dataset: str
    objects: Objects
    specs: Sequence[TensorSpec]
    nbytes: NDArray[np.int64]
    numbers: NDArray[np.int32]
    rows: NDArray[np.int32]
    record_ids: RecordIds
    columns: Mapping[str, Column]

    def __len__(self) -> int:
        return len(self.numbers)

    def __reduce__(self) -> tuple[Any, ...]:
        sequence, own, nonce = self.record_ids.parts()
        places = packed(self.numbers, 0), packed(self.rows, 1), packed(sequence, 1)
        others = (own, nonce, dict(self.columns))
        return _restored, (self.dataset, self.objects, self.specs, self.nbytes, places, others)


def take_index(con: duckdb.DuckDBPyConnection, row: DatasetRow, selection: Selection, columns: Sequence[str]) -> Index:
    """Return the index of the records that match, inside a catalog block.

    Raises:
        InvalidInputError: No record has a field of this name.
        InvalidQueryError: DuckDB refuses the condition.
    """
    wanted = {name: _sql_of(row, name) for name in dict.fromkeys(columns) if name not in (TENSOR, RECORD_ID)}
    table = snapshots.fetch(con, row, selection, {f"column_{at}": sql for at, sql in enumerate(wanted.values())})
    spec_ids = numbers_of(table["spec_id"])
    known, record_specs = np.unique(spec_ids, return_inverse=True)
    found = specs.fetch(con, known.tolist()) if len(known) else {}
    listed = [found[number] for number in known.tolist()]
    objects, numbers = _objects_of(con, table, record_specs.astype(np.int32))
    own = table["own_id"].combine_chunks()
    record_ids = RecordIds(numbers_of(table["seq"]), None if own.null_count == len(own) else own, row.nonce)
    others = {name: column_of(table[f"column_{at}"]) for at, name in enumerate(wanted)}
    nbytes = np.array([nbytes_of(spec) for spec in listed], np.int64)
    rows = numbers_of(table["page_row"])
    return Index(row.name, objects, listed, nbytes, numbers, rows, record_ids, others)


def _restored(
    dataset: str, objects: Objects, listed: Sequence[TensorSpec], nbytes: Array, places: Any, others: Any
) -> Index:
    numbers, rows, sequence = (unpacked(each) for each in places)
    own, nonce, columns = others
    return Index(dataset, objects, listed, nbytes, numbers, rows, RecordIds(sequence, own, nonce), columns)


def _sql_of(row: DatasetRow, name: str) -> str:
    if name == CREATED_AT:
        return CREATED_AT
    sql = snapshots.field_sql(row.fields, name)
    if sql is None:
        known = ", ".join(map(repr, row.fields.fields)) or "none"
        raise InvalidInputError(
            f"dataset {row.name!r} has no column {name!r}; there are 'tensor', 'record_id', 'created_at' and the "
            f"metadata fields {known}"
        )
    return sql


def _objects_of(con: duckdb.DuckDBPyConnection, table: pa.Table, record_specs: Array) -> tuple[Objects, Array]:
    """Return the objects of the records, and the number of each record's."""
    import pyarrow as pa  # loading it takes longer than all the rest of tensordb

    payloads = table["payload"].combine_chunks()
    ids = _fixed(table["object_id"].combine_chunks())
    inlined = np.zeros(len(ids), bool) if payloads.null_count == len(ids) else _valid(payloads)
    # An inlined payload is an object of its own, equal ones or not: each may be damaged by itself.
    starts = np.concatenate([[True], (ids[1:] != ids[:-1]) | inlined[1:]])[: len(ids)]
    heads = np.flatnonzero(starts)
    seen: dict[Any, int] = {}
    keys = zip(ids[heads].tolist(), inlined[heads].tolist(), heads.tolist(), strict=True)
    of_head = np.array([seen.setdefault(head if alone else key, len(seen)) for key, alone, head in keys], np.int32)
    numbers = np.repeat(of_head, np.diff(heads, append=len(ids))).astype(np.int32)
    first = heads[np.unique(of_head, return_index=True)[1]]
    names = b"".join(ids[first].tolist())
    stored = pa.Array.from_buffers(pa.binary(ID_NBYTES), len(first), [None, pa.py_buffer(names)])
    segments, positions, sizes = (numbers_of(column) for column in snapshots.places(con, stored).itercolumns())
    blobs = [payloads[place].as_py() for place in first[inlined[first]].tolist()]
    lengths = np.array([len(blob) for blob in blobs], np.int64)
    alone = inlined[first]
    segments[alone], sizes[alone], positions[alone] = 0, lengths, np.cumsum(lengths) - lengths
    return Objects(names, segments, positions, sizes, record_specs[first], b"".join(blobs)), numbers


def _valid(column: pa.Array) -> NDArray[np.bool_]:
    """Return which values of an Arrow column there are."""
    bits = column.buffers()[0]
    if bits is None:
        return np.ones(len(column), bool)
    return np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[column.offset :][: len(column)].astype(bool)


def _fixed(column: pa.Array) -> NDArray[np.void]:
    """Return an Arrow column of 16 bytes each as an array."""
    _, offsets, data = column.buffers()
    begin = int(np.frombuffer(offsets, np.int32)[column.offset]) if len(column) else 0
    return np.frombuffer(data or b"", f"V{ID_NBYTES}", len(column), begin) if len(column) else np.empty(0, "V16")
