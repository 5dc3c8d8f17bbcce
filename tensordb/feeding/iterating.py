"""One epoch of a stream in one process: blocks decoded one after the other, and the batches or items they fill."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import get_worker_info

from tensordb.encoding.workers import start
from tensordb.feeding.blocks import Blocks, Loaded, Stretch
from tensordb.feeding.items import sharing_cores
from tensordb.feeding.plan import Plan, State
from tensordb.feeding.room import Room
from tensordb.feeding.schedule import Numbers
from tensordb.model import TensorSpec
from tensordb.tensors import byte_view, dtype_name, empty

_Tensors: TypeAlias = "torch.Tensor | list[torch.Tensor]"


class StreamIterator(Iterator[Any]):
    """One epoch of one process. The next block is read in the background, but in a worker, which is in it already."""

    def __init__(self, plan: Plan, seed: int, epoch: int, room: Room) -> None:
        self._plan = plan
        self._room = room
        self._items = plan.items
        self._begin(seed, epoch, 0)

    @property
    def finished(self) -> bool:
        """Whether everything was taken."""
        return self._taken >= self._total

    def state_dict(self) -> State:
        """Return how far it is."""
        return self._plan.state(self._seed, self._epoch, self._taken)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another iterator was."""
        checked = self._plan.check_state(state)
        self._begin(checked["seed"], checked["epoch"], checked["taken"])

    def __next__(self) -> Any:
        if self.finished:
            raise StopIteration
        with sharing_cores():
            if self._plan.batch_size is None:
                return self._next_item()
            positions, tensors = self._part()
            return self._items.batch(positions, tensors, self._plan.mixed)

    @property
    def _taken(self) -> int:
        return self._at - len(self._ready)

    def _begin(self, seed: int, epoch: int, taken: int) -> None:
        self._seed, self._epoch, self._at = seed, epoch, taken
        self._schedule = self._plan.schedule(seed, epoch)
        self._total = int(self._schedule.starts[-1])
        self._number = -1
        self._ahead: tuple[int, Callable[[], Loaded]] | None = None
        source = self._items.source if self._items.has_tensors else None
        self._batch = self._plan.batch_size or self._plan.items_at_once
        self._blocks = Blocks(source, self._schedule, self._batch, taken, self._room)
        self._ready: list[Any] = []  # items decoded with others, the next one last

    def _next_item(self) -> Any:
        if not self._ready:
            self._ready = self._items.several(*self._part())[::-1]
        return self._ready.pop()

    def _part(self) -> tuple[Numbers, _Tensors]:
        """Return the records of the next batch and their tensors, of one block or of several."""
        parts: list[Stretch] = []
        at, end = self._at, min(self._at // self._batch * self._batch + self._batch, self._total)
        while at < end:
            parts.append(self._block(self._block_at(at)).take(at))
            at += len(parts[-1][0])
        self._at = end
        return _together(parts)

    def _block_at(self, taken: int) -> int:
        return int(self._schedule.starts.searchsorted(taken, "right")) - 1

    def _block(self, number: int) -> Loaded:
        """Return a block that is ready, and have the next one read meanwhile."""
        if number != self._number:
            ahead, self._ahead = self._ahead, None
            self._current = ahead[1]() if ahead is not None and ahead[0] == number else self._blocks.load(number)
            self._number = number
            if get_worker_info() is None and number + 2 < len(self._schedule.starts):
                self._ahead = number + 1, start(lambda: self._blocks.load(number + 1))
        return self._current


def _together(parts: Sequence[Stretch]) -> tuple[Numbers, _Tensors]:
    """Return the stretches of a batch, which mostly are one tensor, as one."""
    positions = parts[0][0] if len(parts) == 1 else np.concatenate([part[0] for part in parts])
    first = parts[0][1]
    if all(part[1] is first for part in parts) and len(first) == len(positions):
        return positions, first
    if isinstance(first, list) and all(isinstance(part[1], list) for part in parts):
        return positions, [tensor for part in parts for tensor in part[1]]
    stacks = [tensors[at : at + len(part)] for part, tensors, at in parts]
    whole = [each for each in stacks if isinstance(each, torch.Tensor)]
    if len(whole) < len(stacks) or any(
        each[0].shape != whole[0][0].shape or each.dtype != whole[0].dtype for each in whole
    ):
        return positions, [tensor for stack in stacks for tensor in stack]
    out = empty(TensorSpec(dtype_name(whole[0].dtype), (len(positions), *whole[0].shape[1:])))
    byte_view(out)[:] = np.concatenate([byte_view(each) for each in whole])  # torch does not join every dtype
    return positions, out
