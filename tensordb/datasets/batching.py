"""Cutting what the user hands over into objects: pages of small tensors of one spec, or whole tensors.

A page is copied together here, so what comes out never changes when the user's tensors do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tensordb import tensors
from tensordb.errors import InvalidInputError
from tensordb.model import TensorSpec

PAGED_NBYTES = 128 << 10
"""Largest tensor that goes into pages; a larger one is read faster as an object of its own."""
PAGE_NBYTES = 4 << 20
"""Raw bytes at which a page is full."""
_BUFFERED_NBYTES = 64 << 20
"""Raw bytes of unfinished pages, of all specs together."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What becomes one object.

    Attributes:
        positions: Where its records stand among all that are inserted.
        tensor: The tensor, stacked along the first dimension for a page.
        is_page: Whether each row is a record.
    """

    positions: Sequence[int]
    tensor: torch.Tensor
    is_page: bool


def batches(source: torch.Tensor | Iterable[torch.Tensor]) -> Iterator[Batch]:
    """Yield the objects of a stacked tensor, or of any iterable of tensors, in bounded memory."""
    if isinstance(source, torch.Tensor):
        yield from _of_stack(source)
    elif isinstance(source, Iterable) and not isinstance(source, str | bytes | Mapping):
        yield from _of_iterable(source, owned=isinstance(source, list | tuple))
    else:
        raise InvalidInputError(
            f"tensors is a {type(source).__name__}; give a stacked tensor [N, ...] or an iterable of tensors"
        )


def _of_stack(stack: torch.Tensor) -> Iterator[Batch]:
    if stack.ndim == 0:
        raise InvalidInputError("tensors is 0-d: a stack has its records along the first dimension; insert() takes one")
    total = stack.shape[0]
    row = tensors.spec_of(stack[:1]) if total else tensors.spec_of(stack)
    nbytes = tensors.nbytes_of(TensorSpec(row.dtype, row.shape[1:]))
    if total == 1 or nbytes > PAGED_NBYTES or nbytes == 0:
        for position in range(total):
            yield Batch([position], tensors.snapshot(stack[position]), False)
        return
    size = max(1, PAGE_NBYTES // nbytes)
    for start in range(0, total, size):
        part = stack[start : start + size]
        positions = range(start, start + part.shape[0])
        if len(positions) == 1:
            yield Batch(positions, tensors.snapshot(part[0]), False)
        else:
            yield Batch(positions, tensors.snapshot(part), True)


class _OpenPage:
    """A page being filled."""

    def __init__(self, spec: TensorSpec, nbytes: int) -> None:
        self.capacity = max(1, PAGE_NBYTES // nbytes)
        self.nbytes = nbytes
        self.positions: list[int] = []
        self._spec = spec
        self._stack: torch.Tensor | None = None

    def add(self, position: int, tensor: torch.Tensor) -> None:
        """Copy a tensor of the page's spec into the next row."""
        if self._stack is None or len(self.positions) == self._stack.shape[0]:
            self._grow()
        assert self._stack is not None
        self._stack[len(self.positions)] = tensor
        self.positions.append(position)

    def finish(self) -> Batch:
        """Return what was added; a page of one record is a whole tensor."""
        assert self._stack is not None
        if len(self.positions) == 1:
            return Batch(self.positions, self._stack[0].clone(), False)
        return Batch(self.positions, self._stack[: len(self.positions)], True)

    def _grow(self) -> None:
        # Doubling keeps a page of few records small: an iterable may bring thousands of specs.
        rows = min(self.capacity, max(8, 2 * len(self.positions)))
        stack = tensors.empty(TensorSpec(self._spec.dtype, (rows, *self._spec.shape)))
        if self._stack is not None:
            stack[: len(self.positions)] = self._stack
        self._stack = stack


def _of_iterable(source: Iterable[torch.Tensor], *, owned: bool) -> Iterator[Batch]:
    """Yield batches; `owned` says that nobody changes a tensor while the next one is fetched."""
    pages: dict[TensorSpec, _OpenPage] = {}
    buffered = 0
    for position, item in enumerate(source):
        tensor = _snapshot(item, position, copy=False)
        spec = tensors.spec_of(tensor)
        nbytes = tensors.nbytes_of(spec)
        if nbytes > PAGED_NBYTES or nbytes == 0:
            yield Batch([position], tensor if owned else tensors.snapshot(tensor, copy=True), False)
            continue
        page = pages.setdefault(spec, _OpenPage(spec, nbytes))
        page.add(position, tensor)
        buffered += nbytes
        if len(page.positions) == page.capacity:
            buffered -= len(page.positions) * nbytes
            yield pages.pop(spec).finish()
        elif buffered > _BUFFERED_NBYTES:
            yield from (each.finish() for each in pages.values())
            pages, buffered = {}, 0
    yield from (each.finish() for each in pages.values())


def _snapshot(item: Any, position: int, *, copy: bool) -> torch.Tensor:
    try:
        return tensors.snapshot(item, copy=copy)
    except InvalidInputError as error:
        raise type(error)(f"tensors[{position}]: {error}") from error
