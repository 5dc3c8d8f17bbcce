"""Rounds of a race between coders on one kind of data, in a process that stays: kept apart so that it can be pinned.

Actions of a round: `compress`; `warm`, decompress into memory that is in use already, where a coder can; `fresh`,
decompress into memory that the system has yet to give, which is why freed memory is handed back before.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from pathlib import Path
from typing import Any

import torch
from coders import Coder, coders, raw
from kinds import read_kind
from measure import timed
from torch import Tensor

from tensordb.encoding import kernels

ACTIONS = ("compress", "warm", "fresh")
Seconds = dict[str, dict[str, float]]


class Race:
    """Tensors of one kind, and what each coder makes of them."""

    def __init__(self, folder: Path, kind: str, threads: int, with_slow: bool) -> None:
        kernels.load()
        torch.set_num_threads(threads)
        # What one thread computes takes as long as it would have to itself, however busy the machine is.
        self.clock = time.process_time if threads == 1 else time.perf_counter
        self.tensors = read_kind(folder, kind)
        every = coders(threads).values()
        taking = [coder for coder in every if coder.takes(self.tensors[0].dtype)]
        self.coders = [coder for coder in taking if with_slow or not coder.slow]
        self.stored = {coder.name: self._stored(coder) for coder in self.coders}
        self.warm = [each.clone() for each in self.tensors]
        for coder in self.coders:
            self._check(coder)

    @property
    def sizes(self) -> dict[str, int]:
        """Stored bytes by coder, and the raw ones as ``raw``."""
        sizes = {coder.name: sum(map(coder.nbytes, self.stored[coder.name])) for coder in self.coders}
        return {"raw": sum(each.nbytes for each in self.tensors), **sizes}

    def round(self, turn: int) -> Seconds:
        """Let each coder do each action once, in an order that rotates; slow ones in the first round only."""
        racing = [coder for coder in self.coders if not turn or not coder.slow]
        first = turn % len(racing)
        order = racing[first:] + racing[:first]
        gc.collect()
        gc.disable()
        try:
            return {action: {coder.name: self._timed(action, coder) for coder in order} for action in ACTIONS}
        finally:
            gc.enable()

    def _timed(self, action: str, coder: Coder) -> float:
        kept: list[Any] = []
        if action == "compress":
            inputs = [each.clone() for each in self.tensors] if coder.modifies else self.tensors
            return timed(lambda: kept.extend(map(coder.encode, inputs)), self.clock)
        if action == "warm":
            pairs = list(zip(self.stored[coder.name], self.warm, strict=True))
            return timed(lambda: kept.extend(coder.restore(stored, out) for stored, out in pairs), self.clock)
        pairs = list(zip(self.stored[coder.name], self.tensors, strict=True))
        give_back_memory()
        return timed(lambda: kept.extend(_fresh(coder, *pair) for pair in pairs), self.clock)

    def _stored(self, coder: Coder) -> list[Any]:
        return [coder.store(coder.encode(each.clone() if coder.modifies else each)) for each in self.tensors]

    def _check(self, coder: Coder) -> None:
        for stored, original in zip(self.stored[coder.name], self.tensors, strict=True):
            out = torch.zeros_like(original)
            if not (raw(coder.restore(stored, out)) == raw(original)).all():
                raise AssertionError(f"{coder.name} returned other bytes than it was given: {original.dtype}")


_race: Race | None = None


def open_race(folder: Path, kind: str, threads: int, with_slow: bool) -> dict[str, int]:
    """Begin a race in this process in place of the last one; return the stored sizes."""
    global _race
    _race = None
    _race = Race(folder, kind, threads, with_slow)
    return _race.sizes


def run_round(turn: int) -> Seconds:
    """Run one round of the race."""
    if _race is None:
        raise RuntimeError("open_race() comes first")
    return _race.round(turn)


def _fresh(coder: Coder, stored: Any, like: Tensor) -> Tensor:
    if coder.fresh:
        return coder.fresh(stored)
    return coder.restore(stored, torch.empty_like(like) if coder.destination else like)


def give_back_memory() -> None:
    """Return freed memory to the system, so that what is allocated next is fresh."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
