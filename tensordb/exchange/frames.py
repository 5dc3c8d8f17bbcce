"""Frames of pandas whose cells are arrays; polars and newer pandas speak Arrow by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from tensordb.datasets.metadata import metadata_rows
from tensordb.datasets.streaming import Row
from tensordb.errors import InvalidInputError
from tensordb.exchange.rows import Asked, Roles, Source, id_of, roles_of
from tensordb.tensors import adopted


def from_pandas(frame: Any, asked: Asked) -> Source:
    """Return the rows of a pandas DataFrame; its index is left out.

    Tensors are in a column of arrays, tensors or nested lists of numbers.
    """
    where = "the DataFrame"
    asked.refuse_rows(where)
    names = list(frame.columns)
    candidates = [name for place, name in enumerate(names) if _could_be_tensor(frame.iloc[:, place])]
    roles = roles_of(names, candidates, asked, where)
    return Source(_rows(frame, roles, where), len(frame))


def _rows(frame: Any, roles: Roles, where: str) -> Iterator[Row]:
    metadata = metadata_rows(frame[list(roles.metadata)] if roles.metadata else None)
    ids = None if roles.record_id is None else iter(frame[roles.record_id].tolist())
    for number, value in enumerate(frame[roles.tensor]):
        tensor = _tensor(value, f"row {number} of column {roles.tensor!r} of {where}")
        yield Row(tensor, next(metadata), None if ids is None else id_of(next(ids)))


def _tensor(value: Any, where: str) -> torch.Tensor:
    if isinstance(value, list | tuple):
        value = np.array(value)
    elif isinstance(value, np.ndarray) and value.dtype == object:  # nested lists that came through Arrow
        value = np.array(value.tolist())
    try:
        taken = adopted(value)
    except InvalidInputError as error:
        raise InvalidInputError(f"{where}: {error}") from error
    if not isinstance(taken, torch.Tensor):
        raise InvalidInputError(f"{where} is a {type(value).__name__}, no tensor; convert it")
    return taken


def _could_be_tensor(column: Any) -> bool:
    if not len(column):
        return False
    first = column.iloc[0]
    if isinstance(first, list | tuple):
        return bool(first) and _is_numeric(first)
    return isinstance(first, torch.Tensor | np.ndarray) and bool(first.ndim)


def _is_numeric(value: Any) -> bool:
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return isinstance(value, int | float | np.number)
