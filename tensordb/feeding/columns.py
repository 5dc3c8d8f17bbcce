"""What comes with the tensors of a snapshot: record ids, times and metadata fields, one by one or for a batch."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tensordb.catalog import ids

if TYPE_CHECKING:
    import pyarrow as pa

Positions = NDArray[np.int64]
_DTYPES = {"int32": "int32", "int64": "int64", "double": "float64", "bool": "bool"}
"""Arrow's types of numbers."""


class Column(Protocol):
    """Values of all records; picklable."""

    def pick(self, positions: Positions) -> Sequence[Any]:
        """Return Python values, one for each position."""

    def batch(self, positions: Positions) -> torch.Tensor | Sequence[Any]:
        """Return what a batch has of them: a tensor of numbers, or a list."""


class Numbers:
    """Ints, floats or bools that every record has."""

    def __init__(self, values: NDArray[Any]) -> None:
        self._values = values

    def pick(self, positions: Positions) -> Sequence[Any]:
        """Return Python numbers."""
        return list(self._values[positions].tolist())

    def batch(self, positions: Positions) -> torch.Tensor:
        """Return an int64, float64 or bool tensor."""
        return torch.from_numpy(self._values[positions])


class Values:
    """Values of any other kind, None where a record has none."""

    def __init__(self, column: pa.Array) -> None:
        self._column = column

    @property
    def arrow(self) -> pa.Array:
        """The values as an Arrow array."""
        return self._column

    def pick(self, positions: Positions) -> list[Any]:
        """Return Python values; times are in UTC."""
        return [_with_zone(self._column[position].as_py()) for position in positions.tolist()]

    def batch(self, positions: Positions) -> list[Any]:
        """Return the same list."""
        return self.pick(positions)


class Texts(Values):
    """Texts, picked without an Arrow scalar each, nor by Arrow's way to NumPy, which loads pandas."""

    def __init__(self, column: pa.Array) -> None:
        super().__init__(column)
        validity, offsets, data = column.buffers()
        first, last = column.offset, column.offset + len(column)
        self._offsets = np.frombuffer(offsets, np.int32)[first : last + 1] if len(column) else np.zeros(1, np.int32)
        self._data = memoryview(data or b"")
        bits = None if validity is None else np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little")
        self._valid = None if bits is None else bits[first:last].astype(bool)

    def pick(self, positions: Positions) -> list[str | None]:
        """Return the texts."""
        spans = zip(self._offsets[positions].tolist(), self._offsets[positions + 1].tolist(), strict=True)
        texts = [str(self._data[begin:end], "utf-8") for begin, end in spans]
        if self._valid is None:
            return list[str | None](texts)
        return [text if valid else None for text, valid in zip(texts, self._valid[positions].tolist(), strict=True)]

    def __reduce__(self) -> tuple[Any, ...]:
        return Texts, (self._column,)


class RecordIds:
    """Ids of records, of which those that were generated take no room."""

    def __init__(self, numbers: Positions, own: pa.Array | None, nonce: int) -> None:
        """Take sequence numbers, the user's own ids if there are any, and the dataset's nonce."""
        self._numbers = numbers
        self._own = None if own is None else Texts(own)
        self._nonce = nonce

    def parts(self) -> tuple[Positions, pa.Array | None, int]:
        """Return what it was made of."""
        return self._numbers, self._own and self._own.arrow, self._nonce

    def pick(self, positions: Positions) -> list[str]:
        """Return the ids."""
        generated = ids.generated_ids_of(self._numbers[positions], self._nonce)
        if self._own is None:
            return generated
        own = self._own.pick(positions)
        return [made if given is None else given for made, given in zip(generated, own, strict=True)]

    def batch(self, positions: Positions) -> list[str]:
        """Return the same list."""
        return self.pick(positions)


def column_of(values: pa.ChunkedArray) -> Column:
    """Return an Arrow column as the kind that suits it."""
    column = values.combine_chunks()
    if column.null_count == 0 and str(column.type) in _DTYPES:
        return Numbers(numbers_of(values))
    return Texts(column) if str(column.type) == "string" else Values(column)


def numbers_of(values: pa.ChunkedArray) -> NDArray[Any]:
    """Return an Arrow column of numbers without nulls as an array; Arrow's own way there would load pandas."""
    dtype = _DTYPES[str(values.type)]
    parts = [_numbers_of(chunk, dtype) for chunk in values.chunks]
    return np.concatenate([np.empty(0, dtype), *parts])


def _numbers_of(chunk: pa.Array, dtype: str) -> NDArray[Any]:
    begin, end = chunk.offset, chunk.offset + len(chunk)
    content = chunk.buffers()[1] or b""
    if dtype == "bool":
        return np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")[begin:end].astype(bool)
    return np.frombuffer(content, dtype)[begin:end]


def _with_zone(value: Any) -> Any:
    return value.replace(tzinfo=dt.UTC) if isinstance(value, dt.datetime) else value
