"""Rows that come one after the other, of unknown number, taken apart into what an insert reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One record to be inserted."""

    tensor: Any
    metadata: Mapping[str, Any] | None = None
    record_id: str | None = None


class RowStream:
    """The metadata of rows, iterated as far as the tensors have been.

    Attributes:
        record_ids: The ids so far, None when the rows have none.
    """

    def __init__(self, rows: Iterable[Row], *, named: bool) -> None:
        """Bind rows; `named` says that they bring their ids."""
        self.record_ids: list[str] | None = [] if named else None
        self._rows = rows
        self._documents: deque[Mapping[str, Any] | None] = deque()

    def tensors(self) -> Iterator[Any]:
        """Yield the tensors; what comes with each is there before it."""
        for tensor, metadata, record_id in self._rows:
            self._documents.append(metadata)
            if self.record_ids is not None:
                self.record_ids.append(record_id)  # type: ignore[arg-type]  # checked with all the others
            yield tensor

    def __iter__(self) -> Iterator[Mapping[str, Any] | None]:
        return self

    def __next__(self) -> Mapping[str, Any] | None:
        if not self._documents:
            raise StopIteration  # for now: more come with further tensors
        return self._documents.popleft()
