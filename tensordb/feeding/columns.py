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
        self._texts: NDArray[Any] | None = None

    def pick(self, positions: Positions) -> list[Any]:
        """Return Python values; times are in UTC."""
        if str(self._column.type) == "string":
            if self._texts is None:  # one by one, Arrow takes ten times as long
                self._texts = self._column.to_numpy(zero_copy_only=False)
            return list(self._texts[positions])
        return [_with_zone(self._column[position].as_py()) for position in positions.tolist()]

    def batch(self, positions: Positions) -> list[Any]:
        """Return the same list."""
        return self.pick(positions)

    def __reduce__(self) -> tuple[Any, ...]:
        return Values, (self._column,)


class RecordIds:
    """Ids of records, of which those that were generated take no room."""

    def __init__(self, numbers: Positions, own: pa.Array | None, nonce: int) -> None:
        """Take sequence numbers, the user's own ids if there are any, and the dataset's nonce."""
        self._numbers = numbers
        self._own = None if own is None else Values(own)
        self._nonce = nonce

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
    if column.null_count == 0 and str(column.type) in ("int64", "double", "bool"):
        return Numbers(column.to_numpy(zero_copy_only=False))
    return Values(column)


def _with_zone(value: Any) -> Any:
    return value.replace(tzinfo=dt.UTC) if isinstance(value, dt.datetime) else value
