"""Items to a batch, where those of one batch may have tensors of different shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch.utils.data import default_collate

from tensordb.errors import InvalidInputError

Mixed: TypeAlias = Literal["error", "pad", "nested", "list"]
MIXED: tuple[Mixed, ...] = ("error", "pad", "nested", "list")


def collate(items: Sequence[Any], *, mixed: Mixed = "error", padding: float = 0) -> Any:
    """Return a batch of items, as a `DataLoader` has it by default, and of tensors that differ in shape what is asked.

    Give it to a `DataLoader` as ``collate_fn=collate``, or ``functools.partial(collate, mixed="pad")``.

    Args:
        items: Tensors, numbers, texts, or tuples, lists and mappings of those.
        mixed: For tensors of different shapes: ``"error"``; ``"pad"`` each dimension at its end up to the largest;
            ``"nested"``, a nested tensor; or the ``"list"`` as it is.
        padding: What to pad with.

    Returns:
        A stacked tensor; tensors of numbers; lists of texts and of all else, such as None.

    Raises:
        InvalidInputError: Tensors differ in shape (with ``"error"``) or in dtype, or in their number of dimensions
            where that does not do.

    >>> collate([torch.ones(2), torch.ones(3)], mixed="pad")
    tensor([[1., 1., 0.],
            [1., 1., 1.]])
    """
    first = items[0]
    if isinstance(first, torch.Tensor):
        return join(items, mixed, padding)
    if isinstance(first, Mapping):
        return {key: collate([item[key] for item in items], mixed=mixed, padding=padding) for key in first}
    if isinstance(first, tuple | list) and not hasattr(first, "_fields"):
        return type(first)(collate(column, mixed=mixed, padding=padding) for column in zip(*items, strict=True))
    if all(isinstance(item, bool | int | float) for item in items):
        return default_collate(list(items))
    return list(items)


def join(tensors: Sequence[torch.Tensor], mixed: Mixed, padding: float = 0) -> Any:
    """Return tensors as one, or as `mixed` says where their shapes differ."""
    if mixed == "list" and _differ(tensors):
        return list(tensors)
    other = next((each for each in tensors if each.dtype != tensors[0].dtype), None)
    if other is not None:
        raise InvalidInputError(
            f"a batch has tensors of {tensors[0].dtype} and {other.dtype}; convert them in transform=, or "
            "collate with mixed='list'"
        )
    if not _differ(tensors):
        return torch.stack(list(tensors))
    if mixed == "nested":
        return torch.nested.nested_tensor(list(tensors), layout=torch.jagged)
    if mixed == "pad":
        return _padded(tensors, padding)
    shapes = sorted({tuple(each.shape) for each in tensors})
    raise InvalidInputError(
        f"a batch has tensors of the shapes {', '.join(map(str, shapes[:5]))}; collate with mixed='pad', 'nested' or "
        "'list', or bring them to one shape in transform="
    )


def check_mixed(mixed: Any) -> Mixed:
    """Return the option; raise InvalidInputError unless there is one of this name."""
    if mixed not in MIXED:
        raise InvalidInputError(f"mixed is {mixed!r}; it is one of {', '.join(map(repr, MIXED))}")
    return mixed  # type: ignore[no-any-return]


def _differ(tensors: Sequence[torch.Tensor]) -> bool:
    return any(each.shape != tensors[0].shape or each.dtype != tensors[0].dtype for each in tensors)


def _padded(tensors: Sequence[torch.Tensor], padding: float) -> torch.Tensor:
    ranks = {each.ndim for each in tensors}
    if len(ranks) > 1:
        raise InvalidInputError(f"tensors of {sorted(ranks)} dimensions cannot be padded; collate with mixed='list'")
    largest = [max(sizes) for sizes in zip(*(each.shape for each in tensors), strict=True)]
    out = tensors[0].new_full((len(tensors), *largest), padding)
    for row, each in zip(out, tensors, strict=True):
        row[tuple(map(slice, each.shape))] = each
    return out
