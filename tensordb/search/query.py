"""What is searched for: vectors, a metric and a number of hits, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from tensordb import tensors
from tensordb.errors import InvalidInputError

Metric = Literal["cosine", "l2", "dot"]
Vectors = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Query:
    """Vectors to compare with.

    Attributes:
        vectors: Float64 ``[queries, elements]``.
        is_single: Whether one vector was given, and not a stack of them.
        metric: How vectors are compared.
    """

    vectors: Vectors
    is_single: bool
    metric: Metric


def checked(query: Any, metric: Any) -> Query:
    """Return what was asked for; raise InvalidInputError for what cannot be compared with anything."""
    if metric not in get_args(Metric):
        raise InvalidInputError(f"metric is {metric!r}; give one of {', '.join(map(repr, get_args(Metric)))}")
    vectors = _numbers(query)
    if vectors.ndim not in (1, 2) or vectors.shape[-1] == 0:
        raise InvalidInputError(
            f"query has shape {list(vectors.shape)}; give a vector [elements] or a stack of them [queries, elements]"
        )
    stack = np.atleast_2d(vectors)
    _check_values(stack, metric)
    return Query(stack, vectors.ndim == 1, metric)


def _numbers(query: Any) -> Vectors:
    if isinstance(query, torch.Tensor):
        plain = tensors.snapshot(query)
        if plain.is_complex():
            raise InvalidInputError(f"query is {plain.dtype}; search compares real vectors, such as query.real")
        return np.asarray(plain.to(torch.float64).numpy())
    try:
        values = np.asarray(query)
        if values.dtype.kind not in "biuf" and not (values.dtype.kind == "O" and values.size == 0):
            raise TypeError(f"values of {values.dtype}")
        return np.ascontiguousarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"query is a {type(query).__name__} that is no array of real numbers ({error}); give a tensor, an array or "
            "a list of numbers"
        ) from error


def _check_values(stack: Vectors, metric: Metric) -> None:
    finite = np.isfinite(stack)
    if not finite.all():
        at, place = divmod(int(np.argmin(finite)), stack.shape[-1])
        raise InvalidInputError(
            f"query {at} has {stack[at, place]} at position {place}; search compares finite numbers alone"
        )
    zeros = np.flatnonzero(~stack.any(axis=1))
    if metric == "cosine" and len(zeros):
        raise InvalidInputError(
            f"query {int(zeros[0])} is all zeros, which has no direction to compare; drop it, or use metric='l2'"
        )
