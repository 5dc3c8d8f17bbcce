"""What is asked of a source, and which of its columns become tensor, id and metadata."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tensordb.datasets.metadata import metadata_rows
from tensordb.datasets.streaming import Row, Rows
from tensordb.errors import InvalidInputError

_MOST_EMPTY = 1 << 20
_USUAL = "tensor"
"""The column that is meant when several could be."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user says about a source.

    Attributes:
        tensor: Name of the column that holds the tensors; None to find it.
        record_id: Name of the column or metadata field that becomes the record ids; None to generate them.
        fields: Names of the columns that become metadata; None for all that are left.
        rows: Metadata that comes beside the source, one mapping a record; None when there is none.
    """

    tensor: str | None = None
    record_id: str | None = None
    fields: tuple[str, ...] | None = None
    rows: Any = None

    @classmethod
    def of(cls, tensor: Any, record_id: Any, metadata: Any) -> Asked:
        """Return arguments of the user's, checked."""
        for value, what in ((tensor, "tensor"), (record_id, "record_id")):
            if value is not None and (not isinstance(value, str) or not value):
                raise InvalidInputError(f"{what} is {value!r}; give the name of a column, or None")
        if isinstance(metadata, str):
            raise InvalidInputError(f"metadata is {metadata!r}; give a list of column names, as in [{metadata!r}]")
        names = isinstance(metadata, Sequence) and all(isinstance(each, str) for each in metadata)
        return cls(tensor, record_id, tuple(metadata) if names else None, None if names else metadata)

    def refuse_rows(self, what: str) -> None:
        """Raise when metadata was given beside a source that has columns of its own."""
        if self.rows is not None:
            raise InvalidInputError(f"{what} has metadata of its own; give metadata= as a list of its column names")

    def refuse_columns(self, what: str) -> None:
        """Raise when a column was named of a source that has none."""
        if self.tensor is not None or self.fields:
            name = self.tensor or (self.fields or ("",))[0]
            raise InvalidInputError(f"{what} has no columns, so that {name!r} names none; leave it out")


@dataclass(frozen=True, slots=True)
class Source:
    """Rows to be inserted.

    Attributes:
        rows: The rows.
        total: How many there are, None if that shows only at the end.
    """

    rows: Iterable[Row | Rows]
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Roles:
    """What the columns of a source are for.

    Attributes:
        tensor: The column of the tensors.
        record_id: That of the ids, None when they are generated.
        metadata: The columns of the metadata, in order.
    """

    tensor: str
    record_id: str | None
    metadata: tuple[str, ...]


def roles_of(names: Sequence[str], candidates: Sequence[str], asked: Asked, where: str) -> Roles:
    """Return what each column is for.

    Args:
        names: All columns.
        candidates: Those that look like tensors.
        asked: What the user says.
        where: The source, for messages.

    Raises:
        InvalidInputError: A column is missing or comes twice, or which one is the tensor is not clear.
    """
    for name in names:
        if not isinstance(name, str):
            raise InvalidInputError(f"{where} has a column named {name!r}; names are text")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidInputError(f"{where} has two columns named {twice!r}; rename one")
    for wanted in (asked.tensor, asked.record_id, *(asked.fields or ())):
        if wanted is not None and wanted not in names:
            raise InvalidInputError(f"{where} has no column {wanted!r}; it has {', '.join(map(repr, names)) or 'none'}")
    tensor = asked.tensor if asked.tensor is not None else _only(names, candidates, asked, where)
    if tensor == asked.record_id or tensor in (asked.fields or ()):
        raise InvalidInputError(f"column {tensor!r} of {where} is the tensor; it cannot be the id or metadata too")
    rest = [name for name in names if name not in (tensor, asked.record_id)]
    return Roles(tensor, asked.record_id, tuple(rest if asked.fields is None else asked.fields))


def _only(names: Sequence[str], candidates: Sequence[str], asked: Asked, where: str) -> str:
    free = [name for name in candidates if name != asked.record_id and name not in (asked.fields or ())]
    if len(free) == 1 or _USUAL in free:
        return free[0] if len(free) == 1 else _USUAL
    if free:
        raise InvalidInputError(
            f"{where} has several columns that could be the tensor: {', '.join(map(repr, free))}; name one as tensor="
        )
    raise InvalidInputError(
        f"{where} has no column of tensors (lists of numbers); its columns are "
        f"{', '.join(map(repr, names)) or 'none'}; name one as tensor="
    )


def check_file(path: Path) -> Path:
    """Return a path; raise InvalidInputError for what is there and no file.

    A pipe would have its reader wait, and a device may have no end.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise InvalidInputError(f"{path} cannot be read: it is no regular file; give one")
    return path


def check_count(rows: int, nbytes: int, where: str) -> None:
    """Raise InvalidInputError for rows without end that a file needs no byte for."""
    if not nbytes and rows > _MOST_EMPTY:
        raise InvalidInputError(f"{where} claims {rows:,} rows that have no elements; at most {_MOST_EMPTY:,} are read")


def stacks_beside(stacks: Iterable[torch.Tensor], asked: Asked) -> Iterator[Row | Rows]:
    """Yield the rows of stacked tensors with the metadata that was given beside them."""
    if asked.rows is None and asked.record_id is None:
        return map(Rows, stacks)
    return beside((row for stack in stacks for row in stack.unbind()), asked)


def beside(tensors: Iterable[Any], asked: Asked) -> Iterator[Row | Rows]:
    """Yield rows of tensors with the metadata that was given beside them."""
    if asked.rows is None:
        if asked.record_id is not None:
            raise InvalidInputError(f"record_id is {asked.record_id!r}, but there is no metadata that could have it")
        return map(Row, tensors)
    return _zipped(tensors, metadata_rows(asked.rows), asked.record_id)


def _zipped(tensors: Iterable[Any], rows: Iterator[Any], record_id: str | None) -> Iterator[Row]:
    end = object()
    for tensor in tensors:
        row = next(rows, end)
        if row is end:
            raise InvalidInputError("metadata has fewer rows than there are tensors; they must match")
        yield identified(tensor, row, record_id)
    if next(rows, end) is not end:
        raise InvalidInputError("metadata has more rows than there are tensors; they must match")


def identified(tensor: Any, metadata: Any, record_id: str | None) -> Row:
    """Return a row whose id is taken out of its metadata."""
    if record_id is None:
        return Row(tensor, metadata)
    if not isinstance(metadata, Mapping) or record_id not in metadata:
        raise InvalidInputError(f"a row has no field {record_id!r} that could be its record id: {metadata!r}")
    rest = {name: value for name, value in metadata.items() if name != record_id}
    return Row(tensor, rest, id_of(metadata[record_id]))


def id_of(value: Any) -> Any:
    """Return a value as a record id: whole numbers as text, anything else as it is, to be checked with the others."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
