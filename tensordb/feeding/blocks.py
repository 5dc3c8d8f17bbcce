"""Blocks of a schedule, decoded page by page straight into the batches that their records are in.

Nothing is copied from there: a batch that begins in one block and ends in another is one tensor that both write to.
Only records of several specs become tensors one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import torch

from tensordb.feeding.room import Room, Rows
from tensordb.feeding.schedule import Block, Numbers, Schedule
from tensordb.feeding.source import Source
from tensordb.model import TensorSpec
from tensordb.tensors import nbytes_of

Stretch: TypeAlias = "tuple[Numbers, torch.Tensor | list[torch.Tensor], int]"
"""Records, a tensor that has them or a list of theirs, and in which row of it they begin."""


@dataclass(frozen=True, slots=True)
class _Begun:
    """A batch that ends in a later block.

    Attributes:
        first: Its first record.
        spec: Of a record.
        tensor: All of it.
    """

    first: int
    spec: TensorSpec
    tensor: torch.Tensor


class Loaded:
    """A block that is ready: what it has of each batch. What was taken is no longer held."""

    def __init__(self, stretches: dict[int, Stretch]) -> None:
        self._stretches = stretches

    def take(self, begin: int) -> Stretch:
        """Return the stretch that begins with a record, given by its number in the worker's share."""
        return self._stretches.pop(begin)


class Blocks:
    """Reads the blocks of a schedule in their order, from some record on; one thread at a time.

    Args:
        source: The tensors; None to leave them out.
        schedule: What there is to read.
        batch: Records in a batch; batches begin at its multiples.
        begin: First record to read.
        room: Memory for the batches.
    """

    def __init__(self, source: Source | None, schedule: Schedule, batch: int, begin: int, room: Room) -> None:
        self._source = source
        self._schedule = schedule
        self._batch = batch
        self._first = begin
        self._room = room
        self._begun: _Begun | None = None

    def load(self, number: int) -> Loaded:
        """Read a block, but for its records before the first.

        Raises:
            IntegrityError: A record is damaged.
        """
        start, end = self._schedule.starts[number : number + 2].tolist()
        begin = max(start, self._first)
        first, after = begin // self._batch + 1, -(-end // self._batch)
        edges = [begin, *range(first * self._batch, after * self._batch, self._batch), end]
        block = self._schedule.block(number)
        picked = block.picked(begin - start, end - start)
        parts = {low: picked[low - begin : high - begin] for low, high in pairwise(edges)}
        if self._source is None:
            return Loaded({low: (part, [], 0) for low, part in parts.items()})
        spec = self._source.common_spec(picked)
        if spec is None:
            tensors = self._source.apart(picked)
            return Loaded({low: (parts[low], tensors[low - begin : high - begin], 0) for low, high in pairwise(edges)})
        places = [self._place(low, high, spec) for low, high in pairwise(edges)]
        if nbytes_of(spec):
            rows = [tensor[at : at + len(part)] for part, (tensor, at) in zip(parts.values(), places, strict=True)]
            _fill(self._source, block, begin - start, Rows(rows))
        self._keep(edges[-2], end, spec, places[-1][0])
        return Loaded({low: (parts[low], *place) for low, place in zip(parts, places, strict=True)})

    def _place(self, low: int, high: int, spec: TensorSpec) -> tuple[torch.Tensor, int]:
        """Return the tensor for a stretch of a batch, and the row in which it begins there."""
        first = low // self._batch * self._batch
        if low == first:
            size = min(self._batch, int(self._schedule.starts[-1]) - first)
            return self._room.tensor(TensorSpec(spec.dtype, (size, *spec.shape))), 0
        if self._begun is not None and (self._begun.first, self._begun.spec) == (first, spec):
            return self._begun.tensor, low - first
        return self._room.tensor(TensorSpec(spec.dtype, (high - low, *spec.shape))), 0

    def _keep(self, low: int, end: int, spec: TensorSpec, tensor: torch.Tensor) -> None:
        """Note the batch that the next block goes on with, whose last stretch here begins at `low`."""
        first = low // self._batch * self._batch
        whole = len(tensor) == min(self._batch, int(self._schedule.starts[-1]) - first)
        self._begun = _Begun(first, spec, tensor) if whole and end < first + len(tensor) else None


def _fill(source: Source, block: Block, skipped: int, rows: Rows) -> None:
    """Decode the records of a block, page by page, into where each belongs; those that come first are left out."""
    places = np.arange(len(block.positions))
    if block.turns is not None:
        places[block.turns] = places.copy()
    if skipped:
        wanted = places >= skipped
        source.fill(block.positions[wanted], rows, places[wanted] - skipped)
    else:
        source.fill(block.positions, rows, places)
