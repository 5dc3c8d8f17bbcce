"""One epoch of a stream in one process: blocks decoded one after the other, batches or items picked from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import get_worker_info

from tensordb.encoding.workers import start
from tensordb.feeding.blocks import Loaded, Memory, load
from tensordb.feeding.items import sharing_cores
from tensordb.feeding.plan import Plan, State
from tensordb.feeding.schedule import Block, Numbers
from tensordb.model import TensorSpec
from tensordb.tensors import byte_view, dtype_name, empty

_ITEMS_AT_ONCE = 64
_Ready: TypeAlias = "tuple[Block, Loaded | None]"


class StreamIterator(Iterator[Any]):
    """One epoch of one process. The next block is read in the background, but in a worker, which is in it already."""

    def __init__(self, plan: Plan, seed: int, epoch: int) -> None:
        self._plan = plan
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
            positions, tensors = self._part(min(self._plan.batch_size, self._total - self._at))
            return self._items.batch(positions, tensors, self._plan.mixed)

    @property
    def _taken(self) -> int:
        return self._at - len(self._ready)

    def _begin(self, seed: int, epoch: int, taken: int) -> None:
        self._seed, self._epoch, self._at = seed, epoch, taken
        self._schedule = self._plan.schedule(seed, epoch)
        self._total = int(self._schedule.starts[-1])
        self._number = -1
        self._ahead: tuple[int, Callable[[], _Ready]] | None = None
        self._memories = Memory(), Memory()
        self._ready: list[Any] = []  # items decoded with others, the next one last

    def _next_item(self) -> Any:
        if not self._ready:
            number = self._block_at(self._at)
            count = min(_ITEMS_AT_ONCE, int(self._schedule.starts[number + 1]) - self._at)
            self._ready = self._items.several(*self._part(count))[::-1]
        return self._ready.pop()

    def _part(self, count: int) -> tuple[Numbers, torch.Tensor | list[torch.Tensor]]:
        """Return the next records and their tensors, of one block or of several."""
        parts, at, end = [], self._at, self._at + count
        while at < end:
            number = self._block_at(at)
            first = int(self._schedule.starts[number])
            stop = min(end, int(self._schedule.starts[number + 1]))
            block, loaded = self._block(number)
            tensors = [] if loaded is None else loaded.batch(at - first, stop - first)
            parts.append((block.picked(at - first, stop - first), tensors))
            at = stop
        self._at = end
        return parts[0] if len(parts) == 1 else _together(parts)

    def _block_at(self, taken: int) -> int:
        return int(self._schedule.starts.searchsorted(taken, "right")) - 1

    def _block(self, number: int) -> _Ready:
        """Return a block that is ready, and have the next one read meanwhile."""
        if number != self._number:
            ahead, self._ahead = self._ahead, None
            self._current = ahead[1]() if ahead is not None and ahead[0] == number else self._read(number)
            self._number = number
            if get_worker_info() is None and number + 2 < len(self._schedule.starts):
                self._ahead = number + 1, start(lambda: self._read(number + 1))
        return self._current

    def _read(self, number: int) -> _Ready:
        block = self._schedule.block(number)
        if not self._items.has_tensors:
            return block, None
        return block, load(self._items.source, block, self._memories[number % 2])


def _together(
    parts: Sequence[tuple[Numbers, torch.Tensor | list[torch.Tensor]]],
) -> tuple[Numbers, torch.Tensor | list[torch.Tensor]]:
    """Return what came from several blocks as if from one."""
    positions = np.concatenate([part[0] for part in parts])
    stacks = [part[1] for part in parts]
    whole = [each for each in stacks if isinstance(each, torch.Tensor)]
    if len(whole) < len(stacks) or any(
        each[0].shape != whole[0][0].shape or each.dtype != whole[0].dtype for each in whole
    ):
        return positions, [tensor for stack in stacks for tensor in stack]
    out = empty(TensorSpec(dtype_name(whole[0].dtype), (len(positions), *whole[0].shape[1:])))
    byte_view(out)[:] = np.concatenate([byte_view(each) for each in whole])  # torch does not join every dtype
    return positions, out
