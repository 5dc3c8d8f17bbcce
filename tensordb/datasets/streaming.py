"""Rows that come one after the other, of unknown number, taken apart into what an insert reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from tensordb.datasets.batching import Stack

Metadata = Mapping[str, Any] | None


class Row(NamedTuple):
    """One record to be inserted."""

    tensor: Any
    metadata: Metadata = None
    record_id: str | None = None


class Rows(NamedTuple):
    """Records of one spec: a stacked tensor that nobody changes, and what comes with its rows (None: nothing)."""

    stack: torch.Tensor
    metadata: Sequence[Metadata] | None = None
    record_ids: Sequence[str] | None = None


class RowStream:
    """The metadata of rows, iterated as far as the tensors have been.

    Attributes:
        record_ids: The ids so far, None when the rows have none.
    """

    def __init__(self, rows: Iterable[Row | Rows], *, named: bool) -> None:
        """Bind rows; `named` says that they bring their ids."""
        self.record_ids: list[str] | None = [] if named else None
        self._rows = rows
        self._documents: deque[Metadata] = deque()

    def tensors(self) -> Iterator[Any]:
        """Yield the tensors, some as a `Stack` of them; what comes with each is there before it."""
        for each in self._rows:
            if isinstance(each, Rows):
                self._documents.extend([None] * len(each.stack) if each.metadata is None else each.metadata)
                if self.record_ids is not None:
                    self.record_ids.extend(each.record_ids or ())
                yield Stack(each.stack)
            else:
                self._documents.append(each.metadata)
                if self.record_ids is not None:
                    self.record_ids.append(each.record_id)  # type: ignore[arg-type]  # checked with all the others
                yield each.tensor

    def __iter__(self) -> Iterator[Metadata]:
        return self

    def __next__(self) -> Metadata:
        if not self._documents:
            raise StopIteration  # for now: more come with further tensors
        return self._documents.popleft()
