"""The options of a stream, checked: what is read of which records, who shares them, and whose state may be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import get_worker_info

from tensordb.errors import InvalidInputError
from tensordb.feeding.collating import Mixed, check_mixed
from tensordb.feeding.items import Items
from tensordb.feeding.schedule import (
    Batched,
    Even,
    InOrder,
    Schedule,
    Shard,
    Shuffle,
    Shuffled,
    Units,
    batches_in,
    share_of_rank,
    units_of,
)
from tensordb.payloads import Pin

_ADJACENT_NBYTES = 8 << 20
"""Raw bytes that are decoded at a time where single records are not shuffled."""
_ITEMS_NBYTES = 256 << 10
"""Raw bytes of single items that are decoded into one tensor, which lives as long as any of them."""
State: TypeAlias = dict[str, Any]


class Plan:
    """What a stream and its iterators go by; it does not change, and is picklable.

    Attributes:
        items: The records.
        batch_size: Records in a batch; None for single items.
        mixed: What to do with tensors of different shapes.
        seed: None to draw one.
        shuffle: Whether the order is random, and if so, of what.
        buffer: Raw bytes that are shuffled together.
        items_at_once: How many single items are decoded into one tensor.
    """

    def __init__(
        self,
        items: Items,
        pin: Pin | None,
        *,
        shuffle: Shuffle,
        seed: int | None,
        buffer: int,
        batch_size: int | None,
        drop_last: bool,
        mixed: Mixed,
        even: Even,
        rank: int | None,
        world_size: int | None,
    ) -> None:
        self.items = items
        self._pin = pin
        self.shuffle = _check_shuffle(shuffle)
        self._drop_last = _check_flag(drop_last, "drop_last")
        self.seed = None if seed is None else check_number(seed, "seed", 0)
        self.buffer = check_number(buffer, "buffer", 1)
        self.batch_size = None if batch_size is None else check_number(batch_size, "batch_size", 1)
        self.mixed = check_mixed(mixed)
        self._even = _check_even(even)
        self._rank, self._ranks = _ranks(rank, world_size)
        if self.shuffle and self._ranks > 1 and self.seed is None:
            raise InvalidInputError("shuffling on several ranks needs a seed=, the same on all of them")
        if self._drop_last and self.batch_size is None:
            raise InvalidInputError("drop_last=True leaves out a smaller batch; give batch_size=, or the DataLoader's")
        index = items.index
        self._mean_nbytes = float(index.nbytes[index.objects.specs].mean()) if len(index.objects) else 0.0
        self.items_at_once = int(min(64, max(1, _ITEMS_NBYTES // max(1.0, self._mean_nbytes))))
        if self.shuffle == "batches" and self.batch_size is None:
            raise InvalidInputError("shuffle='batches' shuffles batches that the stream makes; give batch_size=")
        self._units: Units | None = units_of(items.index) if self.shuffle else None

    def __getstate__(self) -> dict[str, Any]:
        # Who unpickles it relies on this object for the pin.
        units = self._units if self._units is not None and self._units.order is not None else None  # else soon made
        return {**self.__dict__, "_pin": None, "_units": units}

    def yielded(self) -> int:
        """Return how many batches, or items, the workers of this rank yield together."""
        low, high = share_of_rank(len(self.items), Shard(self._rank, self._ranks), self._even)
        return batches_in(high - low, self.batch_size or 1, self._drop_last)

    def schedule(self, seed: int, epoch: int) -> Schedule:
        """Return what this process reads in an epoch."""
        shard, batch, index = self.shard(), self.batch_size or 1, self.items.index
        at_once = min(self.buffer, _ADJACENT_NBYTES)
        if self.shuffle:
            if self._units is None:
                self._units = units_of(index)
            options = (self._units, shard, batch, self._drop_last, self._even, seed, epoch)
            return (
                Batched(*options, self._mean_nbytes, at_once)
                if self.shuffle == "batches"
                else Shuffled(*options, self.buffer)
            )
        return InOrder(len(index), shard, batch, self._drop_last, self._even, self._mean_nbytes, at_once)

    def shard(self) -> Shard:
        """Return which rank and worker this process is."""
        info = get_worker_info()
        return Shard(self._rank, self._ranks, info.id if info else 0, info.num_workers if info else 1)

    def state(self, seed: int, epoch: int, taken: int) -> State:
        """Return the state of an iteration that has yielded so many records."""
        shard = self.shard()
        mine = [shard.rank, shard.ranks, shard.worker, shard.workers]
        return {"format": 1, "seed": seed, "epoch": epoch, "taken": taken, "layout": self._layout(), "shard": mine}

    def check_state(self, state: Any) -> State:
        """Return a state.

        Raises:
            InvalidInputError: It is not one of such a stream, rank and worker.
        """
        if not isinstance(state, Mapping) or state.get("format") != 1:
            raise InvalidInputError(f"{state!r} is no state of a stream; give what state_dict() returned")
        mine = self.state(0, 0, 0)
        for key, what in (
            ("layout", "[records, shuffle, buffer, batch_size, drop_last, even]"),
            ("shard", "[rank, world_size, worker, num_workers]"),
        ):
            if list(state[key]) != mine[key]:
                raise InvalidInputError(
                    f"the state is of a stream with {what} = {list(state[key])}, this one has {mine[key]}; resume with "
                    "the same"
                )
        return dict(state)

    def _layout(self) -> list[Any]:
        """Return what a state depends on."""
        return [len(self.items), self.shuffle, self.buffer, self.batch_size, self._drop_last, self._even]


def check_number(value: Any, what: str, least: int) -> int:
    """Return an int from `least` on; raise InvalidInputError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value < 1 << 63:
        raise InvalidInputError(f"{what} is {value!r}; it is an int from {least}")
    return int(value)


def _ranks(rank: Any, world_size: Any) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise InvalidInputError(f"rank is {rank!r} and world_size {world_size!r}; give both or none")
    if rank is None:
        distributed = torch.distributed
        running = distributed.is_available() and distributed.is_initialized()
        return (distributed.get_rank(), distributed.get_world_size()) if running else (0, 1)
    size = check_number(world_size, "world_size", 1)
    if check_number(rank, "rank", 0) >= size:
        raise InvalidInputError(f"rank is {rank!r}; it is less than world_size, {size}")
    return int(rank), size


def _check_flag(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidInputError(f"{what} is {value!r}; give True or False")
    return value


def _check_shuffle(value: Any) -> Shuffle:
    if not isinstance(value, bool) and value != "batches":
        raise InvalidInputError(f"shuffle is {value!r}; it is True, False or 'batches'")
    return value  # type: ignore[no-any-return]


def _check_even(value: Any) -> Even:
    if value not in (None, "drop", "pad"):
        raise InvalidInputError(f"even is {value!r}; it is None, 'drop' or 'pad'")
    return value  # type: ignore[no-any-return]
