"""Items of torch's datasets and of any iterable, and the datasets of Hugging Face."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tensordb.datasets.streaming import Row, Rows
from tensordb.errors import InvalidInputError
from tensordb.exchange import images
from tensordb.exchange.rows import Asked, Roles, Source, beside, id_of, identified, roles_of
from tensordb.tensors import adopted

_BATCH_ROWS = 256


def is_hugging_face(source: Any) -> bool:
    """Tell whether a source is a map-style dataset of Hugging Face."""
    return hasattr(source, "with_format") and hasattr(source, "features") and hasattr(source, "__len__")


def from_hugging_face(source: Any, asked: Asked) -> Source:
    """Return the rows of a map-style dataset of Hugging Face, in its order, read as Arrow."""
    from tensordb.exchange.tables import from_batches

    tables = source.with_format("arrow")
    schema = tables[:0].schema
    batches = chain.from_iterable(each.to_batches() for each in tables.iter(_BATCH_ROWS))
    return from_batches(schema, batches, asked, "the dataset", len(source), local=True)


def from_items(source: Any, asked: Asked) -> Source:
    """Return the rows of a torch Dataset, or of an iterable.

    Its items are tensors or arrays or Pillow's pictures; pairs of such a one and its label, or its metadata; or dicts,
    one value of which is it.
    """
    if isinstance(source, DataLoader):
        raise InvalidInputError("a DataLoader gives batches, of which the records are not known; give its dataset")
    is_map_style = isinstance(source, Dataset) and not isinstance(source, IterableDataset)
    if is_map_style and not hasattr(source, "__len__"):
        raise InvalidInputError(f"a {type(source).__name__} has no length; give an iterable of its items")
    if not is_map_style and (isinstance(source, str | bytes) or not isinstance(source, Iterable)):
        raise InvalidInputError(
            f"a {type(source).__name__} cannot be imported; give a path, an array, a table or DataFrame, or an "
            "iterable of tensors"
        )
    items = (source[place] for place in range(len(source))) if is_map_style else iter(source)
    total = len(source) if hasattr(source, "__len__") else None
    first = next(items, None)
    if first is None:
        return Source((), 0)
    return Source(_rows(chain([first], items), first, asked), total)


def _rows(items: Iterable[Any], first: Any, asked: Asked) -> Iterator[Row | Rows]:
    if isinstance(first, Mapping):
        asked.refuse_rows("an iterable of dicts")
        return _of_dicts(items, first, asked)
    asked.refuse_columns("an iterable of tensors")
    if isinstance(first, tuple | list):
        asked.refuse_rows("an iterable of pairs")
        return (_of_pair(item, number, asked) for number, item in enumerate(items))
    return beside((_tensor(item, f"item {number}") for number, item in enumerate(items)), asked)


def _of_dicts(items: Iterable[Any], first: Mapping[Any, Any], asked: Asked) -> Iterator[Row]:
    names = list(first)
    roles = roles_of(names, [name for name in names if _could_be_tensor(first[name])], asked, "item 0")
    for number, item in enumerate(items):
        where = f"item {number}"
        if not isinstance(item, Mapping):
            raise InvalidInputError(f"{where} is a {type(item).__name__}, the first one is a dict")
        wanted = _wanted(item, roles, asked)
        if roles.tensor not in item or (roles.record_id is not None and roles.record_id not in item):
            lacking = roles.tensor if roles.tensor not in item else roles.record_id
            raise InvalidInputError(f"{where} has no {lacking!r}, which the first one has")
        metadata = {name: item[name] for name in wanted if name in item}
        record_id = None if roles.record_id is None else id_of(_plain(item[roles.record_id]))
        yield Row(_tensor(item[roles.tensor], where), metadata or None, record_id)


def _wanted(item: Mapping[Any, Any], roles: Roles, asked: Asked) -> Iterable[Any]:
    if asked.fields is not None:
        return asked.fields
    return [name for name in item if name not in (roles.tensor, roles.record_id)]


def _of_pair(item: Any, number: int, asked: Asked) -> Row:
    where = f"item {number}"
    if not isinstance(item, tuple | list) or len(item) != 2:
        what = f"has {len(item)} parts" if isinstance(item, tuple | list) else f"is a {type(item).__name__}"
        raise InvalidInputError(f"{where} {what}; give pairs of a tensor and its label, or dicts")
    tensor, label = item
    metadata = label if isinstance(label, Mapping) else {"label": _plain(label)}
    return identified(_tensor(tensor, where), metadata, asked.record_id)


def _tensor(value: Any, where: str) -> torch.Tensor:
    taken = images.pixels(value) if images.is_picture(value) else adopted(value)
    if not isinstance(taken, torch.Tensor):
        raise InvalidInputError(f"{where} is a {type(value).__name__}, no tensor; convert it with torch.as_tensor(...)")
    return taken


def _could_be_tensor(value: Any) -> bool:
    if images.is_picture(value):
        return True
    return isinstance(value, torch.Tensor | np.ndarray) and value.ndim > 0


def _plain(label: Any) -> Any:
    return label.item() if isinstance(label, torch.Tensor | np.ndarray | np.generic) and label.size == 1 else label
