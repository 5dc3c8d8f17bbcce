"""Which records and columns leave a dataset, and reading them in parts of bounded bytes.

What matches is found once, when an export begins. A record that is deleted before it was reached is an error: an
export has all that it says, or does not come to be.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from tensordb.catalog import documents, records, specs
from tensordb.catalog.fields import FieldType, StructOf
from tensordb.catalog.records import Selection
from tensordb.datasets import lookup
from tensordb.engine import Database
from tensordb.errors import ConflictError, InvalidInputError
from tensordb.model import TensorSpec
from tensordb.tensors import nbytes_of

PART_NBYTES = 16 << 20
"""Raw bytes from which on a part is large enough; it has at most `lookup.SCAN_NBYTES` more, or one record."""
_PART_RECORDS = 65536
DOCUMENT = "tensordb.document"
"""Column of exact metadata."""
OURS = ("record_id", "created_at", "tensor")
_PREFIX = "metadata."
Numbers = np.ndarray[Any, np.dtype[np.int64]]


class Item(NamedTuple):
    """One record: `tensor` is None where it was not asked for, `packed` the stored form of the metadata."""

    record_id: str
    created_at: dt.datetime
    packed: bytes | None
    tensor: torch.Tensor | None


@dataclass(frozen=True)
class Column:
    """One column of an export.

    Attributes:
        name: Its name.
        role: What it holds.
        path: For a field of the metadata the names that lead to it.
        kind: And its type.
    """

    name: str
    role: Literal["record_id", "created_at", "tensor", "field", "document"]
    path: tuple[str, ...] = ()
    kind: FieldType = "NULL"


@dataclass(frozen=True, eq=False)
class Selected:
    """The records that matched.

    Attributes:
        db: The database.
        name: The dataset.
        numbers: Their sequence numbers, in order.
        spec_ids: Spec of each.
        specs: The specs by number.
        fields: The metadata fields that have columns.
    """

    db: Database
    name: str
    numbers: Numbers
    spec_ids: Numbers
    specs: Mapping[int, TensorSpec]
    fields: StructOf

    def __len__(self) -> int:
        return len(self.numbers)

    def spec(self) -> TensorSpec:
        """Return the one spec of all records; raise InvalidInputError when there are several, or no records."""
        if len(self.specs) == 1:
            return next(iter(self.specs.values()))
        if not self.specs:
            raise InvalidInputError(f"no record of {self.name!r} matches, so that there is no shape to give")
        shown = ", ".join(f"{each.dtype}{list(each.shape)}" for each in list(self.specs.values())[:5])
        more = f" and {len(self.specs) - 5} more" if len(self.specs) > 5 else ""
        raise InvalidInputError(
            f"the records of {self.name!r} have different dtypes or shapes, which make no one array: {shown}{more}; "
            "select those of one by where=, or use to_arrow(), Parquet or safetensors, which hold all"
        )

    def parts(self, *, decode: bool = True, bar: Any = None) -> Iterator[list[Item]]:
        """Yield the records in parts of about `PART_NBYTES`."""
        pending: list[Item] = []
        nbytes = seen = 0
        for located in lookup.parts(self.db, self.name, self.numbers):
            tensors: Sequence[Any] = self.db.reader.tensors(located) if decode else [None] * len(located.rows)
            for row, tensor in zip(located.rows, tensors, strict=True):
                pending.append(Item(row.record_id, row.created_at.replace(tzinfo=dt.UTC), row.document, tensor))
                nbytes += 64 + len(row.document or b"") + (0 if tensor is None else tensor.nbytes)
            seen += len(located.rows)
            if nbytes >= PART_NBYTES or len(pending) >= _PART_RECORDS:
                yield _advanced(pending, bar)
                pending, nbytes = [], 0
        if seen != len(self):
            raise ConflictError(
                f"{len(self) - seen:,} of the {len(self):,} records of {self.name!r} were deleted while they were "
                "read; repeat it"
            )
        if pending:
            yield _advanced(pending, bar)

    def column(self, name: Any) -> Column:
        """Return the column of this name.

        Raises:
            InvalidInputError: There is no such metadata field.
        """
        if not isinstance(name, str) or not name:
            raise InvalidInputError(f"{name!r} names no column; names are text")
        if name in OURS:
            return Column(name, name)  # type: ignore[arg-type]
        for text in (name, name.removeprefix(_PREFIX)):
            found = _find(self.fields, text)
            if found is not None:
                return Column(name, "field", *found)
        known = ", ".join([*OURS, *self.fields.fields])
        raise InvalidInputError(f"{self.name!r} has no column {name!r}; it has {known}")

    def columns(self, names: Sequence[str] | str | None, *, exact: bool = False) -> list[Column]:
        """Return the columns of these names; all for None, with `exact` that of the documents too."""
        if isinstance(names, str):
            names = [names]
        if names is not None:
            if not names or len(set(names)) < len(names):
                raise InvalidInputError(f"columns is {names!r}; give each name once, and at least one")
            return [self.column(each) for each in names]
        taken = ["record_id", "tensor"]
        columns = [Column("record_id", "record_id"), Column("tensor", "tensor")]
        for field, kind in self.fields.fields.items():
            name = field
            while name in (*taken, *OURS, DOCUMENT):
                name = _PREFIX + name
            taken.append(name)
            columns.append(Column(name, "field", (field,), kind))
        return [*columns, Column(DOCUMENT, "document")] if exact else columns


def select(db: Database, name: str, selection: Selection) -> Selected:
    """Find the records that match now."""
    with db.catalog.read() as con:
        row = db.catalog.known.dataset(con, name)
        unlimited = Selection(selection.where, selection.params, selection.order_by)
        numbers, spec_ids = records.matching_specs(con, row, unlimited)
        numbers, spec_ids = numbers[: selection.limit], spec_ids[: selection.limit]
        found = specs.fetch(con, np.unique(spec_ids).tolist()) if len(numbers) else {}
    fields = row.columns if isinstance(row.columns, StructOf) else StructOf()
    return Selected(db, name, numbers, spec_ids, found, fields)


def value_of(document: Mapping[str, Any], path: Sequence[str]) -> Any:
    """Return a value of a document, None where there is none; names are compared as SQL does."""
    value: Any = document
    for name in path:
        if not isinstance(value, Mapping):
            return None
        value = value[name] if name in value else _folded(value).get(name.casefold())
    return value


def document_of(item: Item) -> dict[str, Any]:
    """Return the metadata of a record."""
    return documents.unpack(item.packed)


def raw_nbytes(selected: Selected) -> int:
    """Return the raw bytes of all tensors."""
    numbers, counts = np.unique(selected.spec_ids, return_counts=True)
    return sum(nbytes_of(selected.specs[number]) * int(count) for number, count in zip(numbers, counts, strict=True))


def _advanced(part: list[Item], bar: Any) -> list[Item]:
    if bar is not None:
        bar.update(len(part))
    return part


def _folded(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name.casefold(): each for name, each in value.items()}


def _find(kind: FieldType, text: str) -> tuple[tuple[str, ...], FieldType] | None:
    """Return the path that a dotted name means, and its type; a field whose own name has a dot comes first."""
    if not isinstance(kind, StructOf):
        return None
    for name, inner in kind.fields.items():
        if name.casefold() == text.casefold():
            return (name,), inner
        if text.casefold().startswith(f"{name}.".casefold()):
            found = _find(inner, text[len(name) + 1 :])
            if found is not None:
                return (name, *found[0]), found[1]
    return None
