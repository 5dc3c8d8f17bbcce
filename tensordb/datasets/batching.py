"""Cutting what the user hands over into objects: pages of small tensors of one spec and config, or whole tensors.

A page is copied together here, so what comes out never changes when the user's tensors do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tensordb import tensors
from tensordb.encoding.presets import CompressionConfig
from tensordb.engine.paging import PAGE_NBYTES, PAGED_NBYTES
from tensordb.errors import InvalidInputError
from tensordb.model import TensorSpec

_BUFFERED_NBYTES = 64 << 20
"""Raw bytes of unfinished pages, of all specs together."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What becomes one object.

    Attributes:
        positions: Where its records stand among all that are inserted.
        tensor: The tensor, stacked along the first dimension for a page.
        is_page: Whether each row is a record.
        config: What it is encoded with.
    """

    positions: Sequence[int]
    tensor: torch.Tensor
    is_page: bool
    config: CompressionConfig


@dataclass(frozen=True, slots=True)
class Choice:
    """What each tensor is encoded with.

    Attributes:
        config: With its rules.
        names: What they know the tensors by, in the order of the tensors; None when they have no names.
    """

    config: CompressionConfig
    names: Sequence[str] | None = None

    def of(self, position: int, spec: TensorSpec) -> CompressionConfig:
        """Return what the tensor at a position is encoded with."""
        if not self.config.rules:
            return self.config
        names = self.names or ()  # may be fewer than the tensors, which is found out at the end
        return self.config.for_tensor(names[position] if position < len(names) else None, spec)

    def of_all(self, total: int, spec: TensorSpec) -> CompressionConfig | None:
        """Return what all tensors of a stack are encoded with, None when they differ."""
        apart = range(1, total) if self.config.rules and self.names is not None else ()
        first = self.of(0, spec)
        return first if all(self.of(position, spec) is first for position in apart) else None


def batches(source: Any, choice: Choice) -> Iterator[Batch]:
    """Yield the objects of a stacked tensor, or of any iterable of tensors and arrays, in bounded memory."""
    if isinstance(source, torch.Tensor):
        yield from _of_stack(source, choice)
    elif isinstance(source, Iterable) and not isinstance(source, str | bytes | Mapping):
        yield from _of_iterable(source, choice, owned=isinstance(source, list | tuple))
    else:
        raise InvalidInputError(
            f"tensors is a {type(source).__name__}; give a stacked tensor [N, ...] or an iterable of tensors"
        )


def _of_stack(stack: torch.Tensor, choice: Choice) -> Iterator[Batch]:
    if stack.ndim == 0:
        raise InvalidInputError("tensors is 0-d: a stack has its records along the first dimension; insert() takes one")
    total = stack.shape[0]
    row = tensors.spec_of(stack[:1]) if total else tensors.spec_of(stack)
    record = TensorSpec(row.dtype, row.shape[1:])
    nbytes = tensors.nbytes_of(record)
    if total == 1 or nbytes > PAGED_NBYTES or nbytes == 0:
        for position in range(total):
            yield Batch([position], tensors.snapshot(stack[position]), False, choice.of(position, record))
        return
    config = choice.of_all(total, record)
    if config is None:
        yield from _of_iterable(stack, choice, owned=True)
        return
    size = max(1, PAGE_NBYTES // nbytes)
    for start in range(0, total, size):
        part = stack[start : start + size]
        positions = range(start, start + part.shape[0])
        if len(positions) == 1:
            yield Batch(positions, tensors.snapshot(part[0]), False, config)
        else:
            yield Batch(positions, tensors.snapshot(part), True, config)


@dataclass(frozen=True, slots=True)
class Stack:
    """Tensors of one spec among others that are inserted, stacked along the first dimension."""

    tensor: torch.Tensor


class _OpenPage:
    """A page being filled."""

    def __init__(self, spec: TensorSpec, nbytes: int, config: CompressionConfig) -> None:
        self.capacity = max(1, PAGE_NBYTES // nbytes)
        self.nbytes = nbytes
        self.config = config
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

    def add_rows(self, first: int, rows: torch.Tensor) -> int:
        """Copy as many of a stack's rows as there is room for; return how many."""
        count = min(len(rows), self.capacity - len(self.positions))
        while self._stack is None or len(self.positions) + count > self._stack.shape[0]:
            self._grow(len(self.positions) + count)
        self._stack[len(self.positions) : len(self.positions) + count] = rows[:count]
        self.positions += range(first, first + count)
        return count

    def finish(self) -> Batch:
        """Return what was added; a page of one record is a whole tensor."""
        assert self._stack is not None
        if len(self.positions) == 1:
            return Batch(self.positions, tensors.snapshot(self._stack[0], copy=True), False, self.config)
        return Batch(self.positions, self._stack[: len(self.positions)], True, self.config)

    def _grow(self, least: int = 8) -> None:
        # Doubling keeps a page of few records small: an iterable may bring thousands of specs.
        rows = min(self.capacity, max(least, 2 * len(self.positions)))
        stack = tensors.empty(TensorSpec(self._spec.dtype, (rows, *self._spec.shape)))
        if self._stack is not None:
            stack[: len(self.positions)] = self._stack[: len(self.positions)]
        self._stack = stack


def _of_iterable(source: Iterable[Any], choice: Choice, *, owned: bool) -> Iterator[Batch]:
    """Yield batches; `owned` says that nobody changes a tensor while the next one is fetched."""
    # By the identity of the config: to hash it would take longer than to copy a small tensor.
    pages: dict[tuple[TensorSpec, int], _OpenPage] = {}
    buffered = 0
    for position, item in _apart(source, choice):
        stack = item.tensor if isinstance(item, Stack) else None
        tensor = _snapshot(item if stack is None else stack[0], position)
        spec = tensors.spec_of(tensor)
        nbytes = tensors.nbytes_of(spec)
        config = choice.of(position, spec)
        if nbytes > PAGED_NBYTES or nbytes == 0:
            yield Batch([position], tensor if owned else tensors.snapshot(tensor, copy=True), False, config)
            continue
        key, done, total = (spec, id(config)), 0, 1 if stack is None else len(stack)
        while done < total:
            page = pages.get(key)
            if page is None:
                page = pages[key] = _OpenPage(spec, nbytes, config)
            if stack is None:
                page.add(position, tensor)
                count = 1
            else:
                count = page.add_rows(position + done, stack[done:])
            done += count
            buffered += count * nbytes
            if len(page.positions) == page.capacity:
                buffered -= len(page.positions) * nbytes
                yield pages.pop(key).finish()
            elif buffered > _BUFFERED_NBYTES:
                yield from (each.finish() for each in pages.values())
                pages, buffered = {}, 0
    yield from (each.finish() for each in pages.values())


def _apart(source: Iterable[Any], choice: Choice) -> Iterator[tuple[int, Any]]:
    """Yield items with their positions; of a stack the rows, unless all of them go the same way into pages."""
    position = 0
    for item in source:
        if not isinstance(item, Stack):
            yield position, item
            position += 1
            continue
        if not len(item.tensor):
            continue
        row = item.tensor[0]
        if choice.config.rules or not 0 < row.nbytes <= PAGED_NBYTES or row.dtype == torch.complex32:
            yield from ((position + place, each) for place, each in enumerate(item.tensor.unbind()))
        else:
            yield position, Stack(tensors.snapshot(item.tensor))
        position += len(item.tensor)


def _snapshot(item: Any, position: int) -> torch.Tensor:
    try:
        return tensors.snapshot(tensors.adopted(item))
    except InvalidInputError as error:
        raise type(error)(f"tensors[{position}]: {error}") from error
