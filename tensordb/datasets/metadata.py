"""The metadata of many records: checked, packed and typed as it comes in, before the catalog is held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from typing import TYPE_CHECKING, Any

from tensordb.catalog import documents, fields
from tensordb.catalog.fields import StructOf
from tensordb.datasets.schema import DatasetSchema
from tensordb.errors import InvalidInputError

if TYPE_CHECKING:
    import pyarrow as pa

_ARROW_ROWS = 65536


class MetadataColumn:
    """One document a record, in the order of the records.

    Args:
        metadata: None, an iterable of mappings (or None), an Arrow table, or a DataFrame (anything with the Arrow
            PyCapsule interface; nulls become None, a pandas index is left out).
        schema: What each document must have.
        where: Name of the metadata in error messages; `{}` in it is the position.

    Attributes:
        documents: The normalized documents, copies of what was given.
        packed: Their stored form.
        fields: Their widened type.
    """

    def __init__(self, metadata: Any, schema: DatasetSchema, where: str = "metadata[{}]") -> None:
        self.documents: list[dict[str, Any] | None] = []
        self.packed: list[bytes | None] = []
        self.fields = StructOf()
        self._given = metadata is not None
        self._rows = _rows(metadata)
        self._schema = schema
        self._where = where
        self._packer = documents.PlainPacker()
        self._plain: dict[tuple[Any, ...], tuple[str, ...]] = {}

    def take(self, count: int) -> None:
        """Take over the rows of `count` more records, fewer if there are no more."""
        for _, row in zip(range(count), self._rows, strict=False):  # in this order no row is lost at the end
            self._take(row)

    def finish(self, total: int) -> None:
        """Take over the rest; raise InvalidInputError unless there are as many rows as records."""
        self.take(total - len(self.documents))
        if len(self.documents) != total or (self._given and next(self._rows, self) is not self):
            raise InvalidInputError(f"metadata has not as many rows as there are tensors ({total}); they must match")

    def _take(self, row: Any) -> None:
        if not self._take_plain(row):
            document = documents.normalize(row, where=self._where.format(len(self.documents)))
            if document is not None:
                self._learn(document)
            self._keep(document, documents.pack(document))

    def _take_plain(self, row: Any) -> bool:
        """Take a flat dict of a layout seen before without looking at its values one by one: most are."""
        if type(row) is not dict:
            return False
        ints = self._plain.get((*row, *map(type, row.values())))
        if ints is None:
            return False
        for name in ints:
            if row[name] not in fields.INT64:
                return False
        packed = self._packer.pack(row)
        if packed is not None:
            self._keep(row.copy(), packed)
        return packed is not None

    def _learn(self, document: dict[str, Any]) -> None:
        merged = fields.widen(self.fields, fields.struct_of(document))
        assert isinstance(merged, StructOf)
        self.fields = merged
        kinds = tuple(map(type, document.values()))
        if documents.PLAIN.issuperset(kinds) and all(
            value in fields.INT64 for value in document.values() if type(value) is int
        ):
            ints = tuple(name for name, kind in zip(document, kinds, strict=True) if kind is int)
            self._plain[(*document, *kinds)] = ints

    def _keep(self, document: dict[str, Any] | None, packed: bytes | None) -> None:
        if self._schema.metadata:
            self._schema.check_metadata(document)
        self.documents.append(document)
        self.packed.append(packed)


def metadata_length(metadata: Any) -> int | None:
    """Return how many rows of metadata there are, None if that shows only at the end or there is none."""
    if metadata is None:
        return None
    if hasattr(metadata, "num_rows"):
        return int(metadata.num_rows)
    return len(metadata) if hasattr(metadata, "__len__") else None


def _rows(metadata: Any) -> Iterator[Any]:
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
