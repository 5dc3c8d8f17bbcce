"""The records of a snapshot as what a user gets: items and batches of the columns that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from tensordb.encoding.workers import alone
from tensordb.errors import InvalidInputError
from tensordb.feeding.collating import Mixed, collate, join
from tensordb.feeding.columns import Column
from tensordb.feeding.index import RECORD_ID, TENSOR, Index
from tensordb.feeding.schedule import Numbers
from tensordb.feeding.source import Source


class Items:
    """Picklable: this is what a worker has.

    Attributes:
        index: The records.
        source: Their tensors.
        columns: A name, whose values are the items, or names, which items have in a tuple.
        transform: What an item goes through.
    """

    def __init__(
        self, index: Index, source: Source, columns: str | tuple[str, ...], transform: Callable[[Any], Any] | None
    ) -> None:
        self.index = index
        self.source = source
        self.columns = columns
        self.transform = transform
        self._names = names_of(columns)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def has_tensors(self) -> bool:
        """Whether tensors were asked for."""
        return TENSOR in self._names

    def one(self, position: int) -> Any:
        """Return an item."""
        with sharing_cores():
            tensors = [self.source.tensor(position)] if self.has_tensors else []
        return self.several(np.array([position]), tensors)[0]

    def many(self, positions: Numbers) -> list[Any]:
        """Return items, decoded together."""
        with sharing_cores():
            tensors = self.source.tensors(positions) if self.has_tensors else []
        return self.several(positions, tensors)

    def several(self, positions: Numbers, tensors: torch.Tensor | Sequence[torch.Tensor]) -> list[Any]:
        """Return records, whose tensors are given, as items."""
        rows: Sequence[Any] = tensors.unbind() if isinstance(tensors, torch.Tensor) else tensors
        columns = [rows if name == TENSOR else self._column(name).pick(positions) for name in self._names]
        items = list(columns[0]) if isinstance(self.columns, str) else list(zip(*columns, strict=True))
        return items if self.transform is None else list(map(self.transform, items))

    def batch(self, positions: Numbers, tensors: torch.Tensor | Sequence[torch.Tensor], mixed: Mixed) -> Any:
        """Return records, whose tensors are given, as a batch."""
        if self.transform is not None:
            return collate(self.several(positions, tensors), mixed=mixed)
        columns = [
            _joined(tensors, mixed) if name == TENSOR else self._column(name).batch(positions) for name in self._names
        ]
        return columns[0] if isinstance(self.columns, str) else tuple(columns)

    def _column(self, name: str) -> Column:
        return self.index.record_ids if name == RECORD_ID else self.index.columns[name]


def names_of(columns: Any) -> tuple[str, ...]:
    """Return the names of columns, given as one or as several.

    Raises:
        InvalidInputError: They are neither.
    """
    names = (columns,) if isinstance(columns, str) else columns
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise InvalidInputError(f"columns is {columns!r}; give a name such as 'tensor', or a sequence of names")
    return tuple(names)


def sharing_cores() -> AbstractContextManager[None]:
    """In a worker of a `DataLoader`, beside which there are others, do everything in one thread."""
    return nullcontext() if get_worker_info() is None else alone()


def _joined(tensors: torch.Tensor | Sequence[torch.Tensor], mixed: Mixed) -> Any:
    return tensors if isinstance(tensors, torch.Tensor) else join(tensors, mixed)
