"""Records in order or shuffled, item by item or batch by batch, shared among ranks and workers, resumable anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from tensordb.feeding.iterating import StreamIterator
from tensordb.feeding.plan import Plan, State, check_number
from tensordb.feeding.room import Room


class TensorStream(IterableDataset[Any]):
    """The records of a `TensorDataset`, one after the other; made by `TensorDataset.stream`.

    `torch.utils.data.DataLoader` takes it, and torchdata's `StatefulDataLoader`, which resumes in the middle of an
    epoch. ``len()`` is what the workers of this rank yield together in an epoch.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        # Shared with workers, so that set_epoch reaches those that live on.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._begun = 0
        self._latest: StreamIterator | None = None
        self._room = Room(2 * plan.buffer)
        self._resume: State | None = None

    def __len__(self) -> int:
        return self._plan.yielded()

    def __iter__(self) -> StreamIterator:
        state, self._resume = self._resume, None
        self._begun += 1
        self._latest = StreamIterator(self._plan, self._drawn_seed(), int(self._epoch), self._room)
        if state is not None:
            self._latest.load_state_dict(state)
        return self._latest

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the epochs that begin from now on, in workers that live on too."""
        self._epoch.fill_(check_number(epoch, "epoch", 0))

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
        self._resume = self._plan.check_state(state) if state else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_latest": None, "_room": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._room = Room(2 * self._plan.buffer)

    def _drawn_seed(self) -> int:
        if self._plan.seed is not None or not self._plan.shuffle:
            return self._plan.seed or 0
        info = get_worker_info()
        if info is None:
            return int(torch.empty((), dtype=torch.int64).random_().item())
        # The same in all workers, and another one each time for those that live on.
        return int(info.seed) - info.id + (self._begun << 64)
