"""The plain dict that a database is compared with: what each dataset, run and weight has to hold."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.storage.tensors import bits

FIELDS = ("i", "s", "b", "deep.k")
Bits = tuple[torch.dtype, tuple[int, ...], bytes]


def bits_of(tensor: torch.Tensor) -> Bits:
    """Return what makes a tensor: dtype, shape and every bit."""
    # Into memory of its own: of a single element torch takes any stride for contiguous.
    return tensor.dtype, tuple(tensor.shape), bits(torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor))


@dataclass
class Row:
    """What a record has to be; a lossy one is what it was when it was read first."""

    id: str
    bits: Bits
    metadata: dict[str, Any] | None

    @property
    def nbytes(self) -> int:
        return len(self.bits[2])

    def field(self, path: str) -> Any:
        value: Any = self.metadata or {}
        for name in path.split("."):
            value = (value or {}).get(name)
        return value

    def fields(self, *, with_none: bool) -> list[str]:
        """Return the fields that conditions ask for, of those that this record has."""
        return [
            path for path in FIELDS if self.field(path) is not None or (with_none and path.split(".")[0] in self.known)
        ]

    @property
    def known(self) -> dict[str, Any]:
        """The metadata as it comes back: without any it is an empty dict."""
        return self.metadata or {}


@dataclass
class Dataset:
    """Records in the order of their insertion, and the metadata fields that ever were."""

    preset: str | None = None
    rows: dict[str, Row] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    indexes: set[str] = field(default_factory=set)

    def put(self, row: Row) -> None:
        self.rows[row.id] = row
        self.seen |= set(row.fields(with_none=True))

    def knows(self, field: str | None) -> bool | None:
        """Tell whether a condition on this field has to be taken (or refused); None where either may be."""
        if field is None or any(field in row.fields(with_none=False) for row in self.rows.values()):
            return True
        return None if field in self.seen else False


@dataclass
class Saved:
    """What a checkpoint has to be."""

    id: str
    step: int | None
    parent: str | None
    tensors: dict[str, Bits]
    note: str
    tags: set[str] = field(default_factory=set)


@dataclass
class Model:
    """All that a database holds."""

    datasets: dict[str, Dataset] = field(default_factory=dict)
    runs: dict[str, list[Saved]] = field(default_factory=dict)
    weights: dict[str, Bits] = field(default_factory=dict)
    deltas: dict[tuple[str, str], Bits] = field(default_factory=dict)

    def copy(self) -> Model:
        """Return a model that changes by itself: what a transaction goes back to."""
        return copy.deepcopy(self)

    def forget_checkpoints(self, gone: list[Saved]) -> None:
        """Let those go that were deleted; who came after one is now after the one before it."""
        parents = {each.id: each.parent for each in gone}
        for saved in self.runs.values():
            saved[:] = [each for each in saved if each.id not in parents]
        for saved in self.runs.values():
            for each in saved:
                while each.parent in parents:
                    each.parent = parents[each.parent]


@dataclass(frozen=True)
class Condition:
    """The same question in SQL and in Python; `field` is the metadata field that it needs to exist."""

    sql: str
    params: Any
    holds: Callable[[Row], bool]
    field: str | None = None


def condition(kind: int, n: int) -> Condition:
    """Return one of the questions; it is about a number, and false where a field is missing."""
    text = TEXTS[n % len(TEXTS)]

    def compared(path: str, holds: Callable[[Any], bool]) -> Callable[[Row], bool]:
        return lambda row: row.field(path) is not None and holds(row.field(path))

    def of_dtype(row: Row) -> bool:
        return row.bits[0] == torch.float32 and row.nbytes > n * 100

    questions = (
        Condition("metadata.i >= ?", [n], compared("i", lambda value: value >= n), "i"),
        Condition("metadata.i % 3 = $r", {"r": n % 3}, compared("i", lambda value: math.fmod(value, 3) == n % 3), "i"),
        Condition("metadata.s = ?", [text], compared("s", lambda value: value == text), "s"),
        Condition("metadata.s IS NULL", None, lambda row: row.field("s") is None, "s"),
        Condition("metadata.b", None, compared("b", bool), "b"),
        Condition("metadata.deep.k < ?", [n], compared("deep.k", lambda value: value < n), "deep.k"),
        Condition("dtype = 'float32' AND nbytes > ?", [n * 100], of_dtype),
        Condition("len(shape) = 2", None, lambda row: len(row.bits[1]) == 2),
        Condition("record_id LIKE 'own %'", None, lambda row: row.id.startswith("own ")),
        Condition("false", None, lambda row: False),
        Condition("true", None, lambda row: True),
    )
    return questions[kind % len(questions)]


TEXTS = ("", "a'b\"c", "naïve ☃", "NULL")


def document(n: int) -> dict[str, Any] | None:
    """Return metadata for a number: some fields or others, of types that differ from one to the next."""
    text = TEXTS[n % len(TEXTS)]
    kinds: tuple[dict[str, Any] | None, ...] = (
        None,
        {},
        {"i": n, "s": text},
        {"i": n, "b": n % 2 == 0, "deep": {"k": n % 7, "list": [1, 2, n]}},
        {"i": -n, "x": n / 3, "b": True},
        {"s": text, "x": n, "new": [None, "text"]},
        {"i": n, "x": float("inf"), "new": n, "s": None},
        {"i": 2 * n, "deep": {"k": None, "other": "°"}, "x": None},
    )
    return kinds[n % len(kinds)]
