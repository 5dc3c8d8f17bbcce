"""What `save` was asked for, checked before anything is copied or written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tensordb.catalog import documents
from tensordb.checkpoints.checkpoint import MOST_METRIC, pack_facts
from tensordb.checkpoints.roles import RoleConfigs
from tensordb.checkpoints.tree import Leaf
from tensordb.errors import InvalidInputError

RESERVED = ("latest", "best")
_MOST_STEPS = 1 << 62


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """What is known of a checkpoint beside its state."""

    run: str
    step: int | None
    epoch: float | None
    metrics: Mapping[str, int | float]
    metadata: Mapping[str, Any]

    @classmethod
    def of(cls, run: Any, step: Any, epoch: Any, metrics: Any, metadata: Any) -> Facts:
        """Return the arguments of `save` in plain values.

        Raises:
            InvalidInputError: One cannot be stored.
        """
        return cls(
            check_name(run, "run"),
            check_step(step),
            _epoch(epoch),
            _metrics(metrics),
            documents.normalize(metadata) or {},
        )

    def packed(self, document: bytes | None) -> bytes:
        """Return metrics and metadata as they were given, for the row that holds a document."""
        return pack_facts(self.metrics, self.metadata, document)

    @property
    def metadata_json(self) -> str:
        """The metadata for SQL; what JSON lacks becomes text."""
        return documents.as_json(self.metadata)

    @property
    def numbers(self) -> dict[str, float]:
        """The metrics for SQL."""
        return {name: float(value) for name, value in self.metrics.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A checkpoint to be written.

    Attributes:
        leaves: Its tensors, which nobody changes until it is written.
        document: The rest of its state.
        configs: What the tensors are encoded with.
    """

    facts: Facts
    leaves: Sequence[Leaf]
    document: bytes
    configs: RoleConfigs


def check_name(name: Any, what: str) -> str:
    """Return the name of a run or a tag; it is text, never a path."""
    if not isinstance(name, str):
        raise InvalidInputError(f"{what} is a {type(name).__name__}, {name!r}; give a name as text")
    if not name.strip() or "\0" in name:
        raise InvalidInputError(f"{what} is {name!r}; give at least one visible character, and no NUL")
    return documents.check_text(name, what)


def check_step(step: Any) -> int | None:
    """Return a step as an int from 0; scalars of NumPy and torch are taken for what they are."""
    if step is None:
        return None
    try:
        number = step.item() if hasattr(step, "item") else step
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"step is {step!r}, which is no single number; give an int from 0") from error
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < _MOST_STEPS:
        raise InvalidInputError(f"step is {step!r}; give an int from 0, or None")
    return number


def _epoch(epoch: Any) -> float | None:
    if epoch is None:
        return None
    number = _number(epoch, "epoch")
    if not math.isfinite(number) or number < 0:
        raise InvalidInputError(f"epoch is {epoch!r}; give a number from 0, or None")
    return float(number)


def _metrics(metrics: Any) -> dict[str, int | float]:
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise InvalidInputError(f"metrics is a {type(metrics).__name__}; give a mapping of names to numbers")
    return {
        check_name(name, "the name of a metric"): _number(value, f"metrics[{name!r}]")
        for name, value in metrics.items()
    }


def _number(value: Any, what: str) -> int | float:
    try:
        plain = documents.normalize({"value": value}, where=what)
    except InvalidInputError:
        plain = None
    number = (plain or {}).get("value")
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise InvalidInputError(f"{what} is {value!r}; give a number")
    if isinstance(number, int) and abs(number) > MOST_METRIC:
        raise InvalidInputError(f"{what} is an int of {number.bit_length()} bits; give a number that a float can hold")
    return number
