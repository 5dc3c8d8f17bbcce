"""The metadata of many records: checked, packed and typed as it comes in, before the catalog is held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice, repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from tensordb.catalog import documents, fields
from tensordb.catalog.documents import Documents, FlatRows
from tensordb.catalog.fields import StructOf
from tensordb.datasets.schema import DatasetSchema
from tensordb.errors import InvalidInputError

if TYPE_CHECKING:
    import pyarrow as pa

    from tensordb.catalog.arrow import MetadataColumns

_ARROW_ROWS = 65536
_FEW_ROWS = 4
_PACKED_ROWS = 2048
_MOST_COLUMNS = 64
"""Names in some rows up to which these are looked at column by column."""


class MetadataColumn:
    """One document a record, in the order of the records.

    Args:
        metadata: None, an iterable of mappings (or None), an Arrow table, or a DataFrame (anything with the Arrow
            PyCapsule interface; nulls become None, a pandas index is left out).
        schema: What each document must have.
        where: Name of the metadata in error messages; `{}` in it is the position.

    Attributes:
        documents: The normalized documents, copies of what was given, part by part.
        packed: Their stored form, but for those that became Arrow columns before: of many documents all of them.
        fields: Their widened type.
        prepared: Both as Arrow columns, once `prepare` was called.
    """

    def __init__(self, metadata: Any, schema: DatasetSchema, where: str = "metadata[{}]") -> None:
        self.documents: list[Documents] = []
        self.packed: list[bytes | None] = []
        self.fields = StructOf()
        self.prepared: MetadataColumns | None = None
        self._columns: list[pa.Array] = []
        self._count = 0
        self._given = metadata is not None
        self._rows = metadata_rows(metadata)
        self._schema = schema
        self._where = where

    def take(self, count: int) -> None:
        """Take over the rows of `count` more records, fewer if there are no more."""
        rows = list(islice(self._rows, count))
        if len(rows) < _FEW_ROWS or not self._take_flat(rows):
            for row in rows:
                self._take(row)
        if len(self.packed) >= _PACKED_ROWS:
            self._convert()

    def finish(self, total: int) -> None:
        """Take over the rest; raise InvalidInputError unless there are as many rows as records."""
        self.take(total - self._count)
        if self._count != total or (self._given and next(self._rows, self) is not self):
            raise InvalidInputError(f"metadata has not as many rows as there are tensors ({total}); they must match")

    def prepare(self, known: StructOf) -> None:
        """Make the Arrow columns for a dataset that has the fields `known` so far, before the catalog is held."""
        from tensordb.catalog import arrow  # loading pyarrow takes longer than all the rest of tensordb

        kind = fields.columns(fields.widen(known, self.fields))
        if self.packed and (self._columns or len(self.packed) > 1):
            self._convert()
        packed = self._columns or [arrow.packed_column(self.packed)]
        self.prepared = arrow.metadata_columns(self.documents, packed, kind)

    def _convert(self) -> None:
        """Make a column of the stored forms that there are, which take twice the memory as objects of their own."""
        from tensordb.catalog import arrow  # see above

        self._columns.append(arrow.packed_column(self.packed))
        self.packed = []

    def _take(self, row: Any) -> None:
        document = documents.normalize(row, where=self._where.format(self._count))
        if document is not None:
            self.fields = _widened(self.fields, document)
        if self._schema.metadata:
            self._schema.check_metadata(document)
        last = self.documents[-1] if self.documents else None
        if isinstance(last, list):
            last.append(document)
        else:
            self.documents.append([document])
        self.packed.append(documents.pack(document))
        self._count += 1

    def _take_flat(self, rows: list[Any]) -> bool:
        """Take flat dicts of plain values all at once, column by column: most are. False when these are not."""
        if self._schema.metadata or set(map(type, rows)) != {dict}:
            return False
        columns, whole = _columns_of(rows)
        if columns is None or set(map(type, columns)) - {str}:
            return False
        if len({name.casefold() for name in (*columns, *self.fields.fields)}) < len({*columns, *self.fields.fields}):
            return False  # SQL ignores case: which spelling a row has decides which value it gives
        kinds = self.fields
        for name, column in columns.items():
            examples = _examples(column)
            if examples is None:
                return False
            for example in examples:
                kinds = _widened(kinds, {name: example})
        packed = documents.pack_flat(rows)
        if packed is not None:
            self.fields = kinds
            empty = [False] * len(rows) if whole and columns else [not row for row in rows]
            self.documents.append(FlatRows(columns, empty))
            self.packed += packed
            self._count += len(packed)
        return packed is not None


def _columns_of(rows: Sequence[dict[Any, Any]]) -> tuple[dict[Any, list[Any]] | None, bool]:
    """Return the values of each name in rows, and whether each row has all names; no values of too many names."""
    names = list(rows[0])
    if set(map(len, rows)) == {len(names)} and len(names) <= _MOST_COLUMNS:
        with suppress(KeyError):  # mostly all rows have the names of the first one
            return {name: list(map(itemgetter(name), rows)) for name in names}, True
    names = list(dict.fromkeys(chain.from_iterable(rows)))
    few = len(names) <= _MOST_COLUMNS
    return ({name: [row.get(name) for row in rows] for name in names} if few else None), False


def _examples(column: list[Any]) -> list[Any] | None:
    """Return a value of each type in a column, None when one of them is not plain."""
    kinds = set(map(type, column))
    if not kinds <= documents.PLAIN:
        return None
    if int in kinds:
        ints = column if len(kinds) == 1 else [value for value in column if type(value) is int]
        if min(ints) not in fields.INT64 or max(ints) not in fields.INT64:
            return None
    return [next(value for value in column if type(value) is kind) for kind in kinds]


def _widened(kinds: StructOf, document: dict[str, Any]) -> StructOf:
    merged = fields.widen(kinds, fields.struct_of(document))
    assert isinstance(merged, StructOf)
    return merged


def metadata_length(metadata: Any) -> int | None:
    """Return how many rows of metadata there are, None if that shows only at the end or there is none."""
    if metadata is None:
        return None
    if hasattr(metadata, "num_rows"):
        return int(metadata.num_rows)
    return len(metadata) if hasattr(metadata, "__len__") else None


def metadata_rows(metadata: Any) -> Iterator[Any]:
    """Yield the rows as they were given, None without end when there are none."""
    if metadata is None:
        return repeat(None)
    if hasattr(metadata, "__arrow_c_stream__"):
        return _rows_of_table(_as_table(metadata))
    if isinstance(metadata, Mapping | str | bytes) or not isinstance(metadata, Iterable):
        raise InvalidInputError(
            f"metadata is a {type(metadata).__name__}; give one mapping a record, an Arrow table or a DataFrame"
        )
    return iter(metadata)


def _rows_of_table(table: pa.Table) -> Iterator[dict[str, Any]]:
    for start in range(0, table.num_rows, _ARROW_ROWS):
        yield from table.slice(start, _ARROW_ROWS).to_pylist()


def _as_table(metadata: Any) -> pa.Table:
    import pyarrow as pa  # loading it takes longer than all the rest of tensordb

    if hasattr(metadata, "reset_index"):  # pandas would make a column of a named index
        metadata = metadata.reset_index(drop=True)
    try:
        return metadata if isinstance(metadata, pa.Table) else pa.table(metadata)
    except pa.ArrowException as error:
        raise InvalidInputError(
            f"metadata, a {type(metadata).__name__}, does not fit Arrow's columns: {error}; give a list of dicts"
        ) from error
