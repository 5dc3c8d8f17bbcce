"""Records in order or shuffled, item by item or batch by batch, shared among ranks and workers, resumable anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from tensordb.encoding.workers import start
from tensordb.errors import InvalidInputError
from tensordb.feeding.blocks import Loaded, Memory, load
from tensordb.feeding.collating import Mixed, check_mixed
from tensordb.feeding.items import Items, sharing_cores
from tensordb.feeding.schedule import (
    Block,
    Even,
    InOrder,
    Numbers,
    Schedule,
    Shard,
    Shuffled,
    Units,
    batches_in,
    share_of_rank,
    units_of,
)
from tensordb.model import TensorSpec
from tensordb.payloads import Pin
from tensordb.tensors import byte_view, dtype_name, empty

BUFFER_NBYTES = 32 << 20
_IN_ORDER_NBYTES = 8 << 20
"""Raw bytes that are decoded at a time where nothing is shuffled."""
_ITEMS_AT_ONCE = 64
State = dict[str, Any]


class TensorStream(IterableDataset[Any]):
    """The records of a `TensorDataset`, one after the other; made by `TensorDataset.stream`.

    `torch.utils.data.DataLoader` takes it, and torchdata's `StatefulDataLoader`, which resumes in the middle of an
    epoch. ``len()`` is what the workers of this rank yield together in an epoch.
    """

    def __init__(
        self,
        items: Items,
        pin: Pin | None,
        *,
        shuffle: bool,
        seed: int | None,
        buffer: int,
        batch_size: int | None,
        drop_last: bool,
        mixed: Mixed,
        even: Even,
        rank: int | None,
        world_size: int | None,
    ) -> None:
        self._items = items
        self._pin = pin
        self._shuffle = _check_flag(shuffle, "shuffle")
        self._drop_last = _check_flag(drop_last, "drop_last")
        self._seed = None if seed is None else _check_number(seed, "seed", 0)
        self._buffer = _check_number(buffer, "buffer", 1)
        self._batch_size = None if batch_size is None else _check_number(batch_size, "batch_size", 1)
        self._mixed = check_mixed(mixed)
        self._even = _check_even(even)
        self._rank, self._ranks = _ranks(rank, world_size)
        if self._shuffle and self._ranks > 1 and self._seed is None:
            raise InvalidInputError("shuffling on several ranks needs a seed=, the same on all of them")
        if self._drop_last and self._batch_size is None:
            raise InvalidInputError("drop_last=True leaves out a smaller batch; give batch_size=, or the DataLoader's")
        self._units: Units | None = units_of(items.index) if self._shuffle else None
        # Shared with workers, so that set_epoch reaches those that live on.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._begun = 0
        self._latest: StreamIterator | None = None
        self._resume: State | None = None

    def __len__(self) -> int:
        low, high = share_of_rank(len(self._items), Shard(self._rank, self._ranks), self._even)
        return batches_in(high - low, self._batch_size or 1, self._drop_last)

    def __iter__(self) -> StreamIterator:
        state, self._resume = self._resume, None
        self._begun += 1
        self._latest = StreamIterator(self, self._drawn_seed(), int(self._epoch))
        if state is not None:
            self._latest.load_state_dict(state)
        return self._latest

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the epochs that begin from now on, in workers that live on too."""
        self._epoch.fill_(_check_number(epoch, "epoch", 0))

    def state_dict(self) -> State:
        """Return where the latest iteration is; between two of them, that the next one begins.

        It is about this process: with workers, ask a `StatefulDataLoader`.
        """
        if self._latest is None or self._latest.finished:
            return self._resume or {}
        return self._latest.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next iteration go on where `state_dict` was called, without reading what came before.

        Raises:
            InvalidInputError: It is the state of a stream with other records or options, or of another rank or worker.
        """
        self._resume = check_state(state, self.layout(), self.shard()) if state else None

    def schedule(self, seed: int, epoch: int) -> Schedule:
        """Return what this process reads in an epoch."""
        shard, batch = self.shard(), self._batch_size or 1
        if self._shuffle:
            if self._units is None:
                self._units = units_of(self._items.index)
            options = (self._drop_last, self._even, seed, epoch, self._buffer)
            return Shuffled(self._units, shard, batch, *options)
        index = self._items.index
        mean = float(index.nbytes[index.objects.specs].mean()) if len(index.objects) else 0.0
        at_once = min(self._buffer, _IN_ORDER_NBYTES)
        return InOrder(len(index), shard, batch, self._drop_last, self._even, mean, at_once)

    def shard(self) -> Shard:
        """Return which rank and worker this process is."""
        info = get_worker_info()
        return Shard(self._rank, self._ranks, info.id if info else 0, info.num_workers if info else 1)

    def layout(self) -> list[Any]:
        """Return what a state depends on."""
        options = [self._shuffle, self._buffer, self._batch_size, self._drop_last, self._even]
        return [len(self._items), *options]

    def __getstate__(self) -> dict[str, Any]:
        # Who unpickles it relies on this object for the pin.
        units = self._units if self._units is not None and self._units.order is not None else None  # else soon made
        return {**self.__dict__, "_pin": None, "_latest": None, "_units": units}

    def _drawn_seed(self) -> int:
        if self._seed is not None or not self._shuffle:
            return self._seed or 0
        info = get_worker_info()
        if info is None:
            return int(torch.empty((), dtype=torch.int64).random_().item())
        # The same in all workers, and another one each time for those that live on.
        return int(info.seed) - info.id + (self._begun << 64)


class StreamIterator(Iterator[Any]):
    """One epoch of one process. The next block is read in the background, but in a worker, which is in it already."""

    def __init__(self, stream: TensorStream, seed: int, epoch: int) -> None:
        self._stream = stream
        self._items = stream._items
        self._begin(seed, epoch, 0)

    @property
    def finished(self) -> bool:
        """Whether everything was taken."""
        return self._taken >= self._total

    def state_dict(self) -> State:
        """Return how far it is."""
        shard = self._stream.shard()
        return {
            "format": 1,
            "seed": self._seed,
            "epoch": self._epoch,
            "taken": self._taken,
            "layout": self._stream.layout(),
            "shard": [shard.rank, shard.ranks, shard.worker, shard.workers],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another iterator was."""
        checked = check_state(state, self._stream.layout(), self._stream.shard())
        self._begin(checked["seed"], checked["epoch"], checked["taken"])

    def __next__(self) -> Any:
        if self.finished:
            raise StopIteration
        with sharing_cores():
            if self._stream._batch_size is None:
                return self._next_item()
            positions, tensors = self._part(min(self._stream._batch_size, self._total - self._at))
            return self._items.batch(positions, tensors, self._stream._mixed)

    @property
    def _taken(self) -> int:
        return self._at - len(self._ready)

    def _begin(self, seed: int, epoch: int, taken: int) -> None:
        self._seed, self._epoch, self._at = seed, epoch, taken
        self._schedule = self._stream.schedule(seed, epoch)
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


_Ready: TypeAlias = "tuple[Block, Loaded | None]"


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


def check_state(state: Any, layout: list[Any], shard: Shard) -> State:
    """Return a state; raise InvalidInputError unless it is one of this stream, rank and worker."""
    if not isinstance(state, Mapping) or state.get("format") != 1:
        raise InvalidInputError(f"{state!r} is no state of a stream; give what state_dict() returned")
    mine = [shard.rank, shard.ranks, shard.worker, shard.workers]
    for key, what, own in (
        ("layout", "[records, shuffle, buffer, batch_size, drop_last, even]", layout),
        ("shard", "[rank, world_size, worker, num_workers]", mine),
    ):
        if list(state[key]) != own:
            raise InvalidInputError(
                f"the state is of a stream with {what} = {list(state[key])}, this one has {own}; resume with the same"
            )
    return dict(state)


def _ranks(rank: Any, world_size: Any) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise InvalidInputError(f"rank is {rank!r} and world_size {world_size!r}; give both or none")
    if rank is None:
        distributed = torch.distributed
        running = distributed.is_available() and distributed.is_initialized()
        return (distributed.get_rank(), distributed.get_world_size()) if running else (0, 1)
    size = _check_number(world_size, "world_size", 1)
    if _check_number(rank, "rank", 0) >= size:
        raise InvalidInputError(f"rank is {rank!r}; it is less than world_size, {size}")
    return int(rank), size


def _check_number(value: Any, what: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value < 1 << 63:
        raise InvalidInputError(f"{what} is {value!r}; it is an int from {least}")
    return int(value)


def _check_flag(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidInputError(f"{what} is {value!r}; give True or False")
    return value


def _check_even(value: Any) -> Even:
    if value not in (None, "drop", "pad"):
        raise InvalidInputError(f"even is {value!r}; it is None, 'drop' or 'pad'")
    return value  # type: ignore[no-any-return]
