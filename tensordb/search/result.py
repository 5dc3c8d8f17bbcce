"""What a search gives back: hits, and lists of them that show themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tensordb.datasets.record import Record, describe, shorten
from tensordb.datasets.showing import grid
from tensordb.display import html_table
from tensordb.looking.pages import thumbnails
from tensordb.overloading import overload
from tensordb.search.query import Metric

_ROWS_SHOWN = 50
_PICTURES_SHOWN = 8


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """A record that was found, with its score.

    Attributes:
        record: The record.
        score: By the metric of the search: the cosine of the angle or the dot product (larger is nearer), or for
            ``"l2"`` the Euclidean distance (smaller is nearer). NaN for a record that holds NaN or infinities.
    """

    record: Record
    score: float

    @property
    def id(self) -> str:
        """The record id."""
        return self.record.id

    @property
    def tensor(self) -> torch.Tensor:
        """The record's tensor."""
        return self.record.tensor


class SearchResult(Sequence[Hit]):
    """The hits of one query, a list-like, nearest first.

    Attributes:
        hits: The hits.
        dataset: Name of the dataset that was searched.
        metric: How vectors were compared.
    """

    def __init__(self, hits: Sequence[Hit], *, dataset: str, metric: Metric) -> None:
        self.hits = list(hits)
        self.dataset = dataset
        self.metric = metric

    @property
    def records(self) -> list[Record]:
        """The records, nearest first."""
        return [each.record for each in self.hits]

    @property
    def scores(self) -> list[float]:
        """Their scores."""
        return [each.score for each in self.hits]

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> list[Hit]: ...
    def __getitem__(self, index: int | slice) -> Hit | list[Hit]:
        return self.hits[index]

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def grid(self, n: int = 16, *, columns: int | None = None) -> Any:
        """Draw the tensors of the first `n` hits side by side, with their scores; return the matplotlib figure.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        scores = iter([f"{self.metric} {each.score:.3g}" for each in self.hits])
        return grid(self.records, n, label=lambda record: next(scores), columns=columns)

    def __repr__(self) -> str:
        if not self.hits:
            return f"SearchResult(no hits in {self.dataset!r}, {self.metric})"
        first, last = self.hits[0], self.hits[-1]
        return (
            f"SearchResult({len(self.hits)} hits in {self.dataset!r}, {self.metric} {first.score:.4g} of "
            f"{first.id!r} to {last.score:.4g})"
        )

    def _repr_html_(self) -> str:
        rows = [
            (f"{each.score:.4g}", each.id, describe(each.tensor), shorten(repr(each.record.metadata)))
            for each in self.hits[:_ROWS_SHOWN]
        ]
        table = html_table([self.metric, "id", "tensor", "metadata"], rows, caption=repr(self))
        first = self.hits[:_PICTURES_SHOWN]
        return table + thumbnails([each.tensor for each in first], [f"{each.score:.4g}" for each in first])
