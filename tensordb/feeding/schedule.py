"""Which records a rank and a worker get in an epoch, in what order, block by block: arithmetic only.

Shuffled, the pages of all records are put into a random order, the sequence of their records is cut into shares, and
each share into blocks of several pages, in which single records are shuffled. So a page is read once, by one worker,
but for those that a cut goes through, and each record comes exactly once. Where whole batches are shuffled, each is a
run of records as they are stored. In order, batches are dealt out to the workers in turn, so that a loader that asks
them in turn has the order of the dataset.

Everything follows from the seed, the epoch and the shares: a position can be found again without reading anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tensordb.feeding.index import Index

Numbers: TypeAlias = NDArray[np.int64]
Even: TypeAlias = Literal["drop", "pad"] | None
Shuffle: TypeAlias = bool | Literal["batches"]


@dataclass(frozen=True, slots=True)
class Shard:
    """Who reads: one of the workers of one of the ranks."""

    rank: int = 0
    ranks: int = 1
    worker: int = 0
    workers: int = 1


@dataclass(frozen=True, slots=True)
class Block:
    """Records that are read together.

    Attributes:
        positions: The records, those of a page together.
        turns: Which of them comes when; None for the order they are in.
    """

    positions: Numbers
    turns: Numbers | None

    def picked(self, begin: int, end: int) -> Numbers:
        """Return the records that come from `begin` to `end` (exclusive)."""
        return self.positions[begin:end] if self.turns is None else self.positions[self.turns[begin:end]]


class Schedule(Protocol):
    """The records of one worker in one epoch.

    Attributes:
        starts: How many records come before each block, and at last how many there are.
    """

    starts: Numbers

    def block(self, number: int) -> Block:
        """Return a block."""


@dataclass(frozen=True, eq=False)
class Units:
    """The records of a snapshot by the objects that hold them.

    Attributes:
        order: Records, those of an object together; None if they are so in the snapshot's own order.
        starts: Where each unit begins in that order, and the end.
        nbytes: Raw bytes of a record in each unit.
    """

    order: Numbers | None
    starts: Numbers
    nbytes: Numbers


def units_of(index: Index) -> Units:
    """Return the units of a snapshot."""
    numbers = index.numbers
    order = None
    starts = _edges(numbers)
    if len(starts) - 1 > len(np.unique(numbers[starts[:-1]])):
        order = np.argsort(numbers, kind="stable")
        numbers = numbers[order]
        starts = _edges(numbers)
    return Units(order, starts, index.nbytes[index.objects.specs[numbers[starts[:-1]]]])


def share_of_rank(total: int, shard: Shard, even: Even) -> tuple[int, int]:
    """Return the first record of a rank and the one after its last; beyond `total` the sequence begins anew."""
    if even is None:
        return shard.rank * total // shard.ranks, (shard.rank + 1) * total // shard.ranks
    size = total // shard.ranks if even == "drop" else -(-total // shard.ranks)
    return shard.rank * size, (shard.rank + 1) * size


def batches_in(count: int, batch: int, drop_last: bool) -> int:
    """Return how many batches so many records make."""
    return count // batch if drop_last else -(-count // batch)


class Shuffled:
    """A worker's share of the records in random order."""

    def __init__(
        self, units: Units, shard: Shard, batch: int, drop_last: bool, even: Even, seed: int, epoch: int, buffer: int
    ) -> None:
        self._units = units
        self._seed = [seed, epoch, 1, shard.rank, shard.worker]
        chosen = np.random.default_rng([seed, epoch, 0]).permutation(len(units.nbytes))
        counts = np.diff(units.starts)[chosen]
        total = int(counts.sum())
        low, high = share_of_rank(total, shard, even)
        batches = batches_in(high - low, batch, drop_last)
        first, last = (batches * part // shard.workers * batch for part in (shard.worker, shard.worker + 1))
        pieces = _pieces(counts, low + first, min(low + last, high), total)
        self._chosen = chosen[pieces[0]]
        self._begins, self._ends = pieces[1], pieces[2]
        sizes = self._ends - self._begins
        self._bounds = _blocks(sizes * units.nbytes[self._chosen], buffer)
        self.starts: Numbers = np.concatenate([[0], np.cumsum(sizes)])[self._bounds]

    def block(self, number: int) -> Block:
        """Return a block, shuffled."""
        part = slice(self._bounds[number], self._bounds[number + 1])
        positions = _ranges(
            self._units.starts[self._chosen[part]] + self._begins[part], (self._ends - self._begins)[part]
        )
        if self._units.order is not None:
            positions = self._units.order[positions]
        return Block(positions, np.random.default_rng([*self._seed, number]).permutation(len(positions)))


class Batched:
    """A worker's share of batches of adjacent records, in random order.

    The records, as they are stored, are a ring, which is cut into batches from a random record on: which records come
    together, and which make up a smaller last batch, is another matter each epoch. Where the cuts between ranks leave
    parts of batches, those come last, and fill the rank's last batches.
    """

    def __init__(
        self,
        units: Units,
        shard: Shard,
        batch: int,
        drop_last: bool,
        even: Even,
        seed: int,
        epoch: int,
        nbytes: float,
        buffer: int,
    ) -> None:
        self._order, self._total = units.order, int(units.starts[-1])
        random = np.random.default_rng([seed, epoch, 2])
        chosen = random.permutation(self._total // batch)
        if self._total % batch:
            chosen = np.append(chosen, self._total // batch)
        counts = np.minimum(batch, self._total - chosen * batch)
        low, high = share_of_rank(self._total, shard, even)
        numbers, begins, ends = _pieces(counts, low, high, self._total)
        begins, sizes = chosen[numbers] * batch + begins, ends - begins
        last = np.argsort(sizes < batch, kind="stable")
        batches = batches_in(high - low, batch, drop_last)
        first, after = (batches * part // shard.workers * batch for part in (shard.worker, shard.worker + 1))
        mine = _pieces(sizes[last], first, min(after, high - low), high - low)
        # Of the records from here on; the ring is closed where they are looked up.
        offset = int(random.integers(max(1, self._total)))
        self._begins, self._sizes = begins[last][mine[0]] + mine[1] + offset, mine[2] - mine[1]
        self._bounds = _blocks(self._sizes * nbytes, buffer)
        self.starts: Numbers = np.concatenate([[0], np.cumsum(self._sizes)])[self._bounds]

    def block(self, number: int) -> Block:
        """Return a block."""
        part = slice(self._bounds[number], self._bounds[number + 1])
        positions = _ranges(self._begins[part], self._sizes[part]) % self._total
        return Block(positions if self._order is None else self._order[positions], None)


class InOrder:
    """A worker's share of the records in the order of the dataset: every so many batches one."""

    def __init__(
        self, total: int, shard: Shard, batch: int, drop_last: bool, even: Even, nbytes: float, buffer: int
    ) -> None:
        self._total, self._batch = total, batch
        low, high = share_of_rank(total, shard, even)
        batches = batches_in(high - low, batch, drop_last)
        if batch > 1:
            numbers = np.arange(shard.worker, batches, shard.workers)
            begins = low + numbers * batch
            self._begins, self._sizes = begins, np.minimum(begins + batch, high) - begins
        else:  # single items: each worker has a stretch
            first, last = (batches * part // shard.workers for part in (shard.worker, shard.worker + 1))
            self._begins = np.arange(low + first, low + last)
            self._sizes = np.ones(last - first, np.int64)
        self._step = max(1, int(buffer // max(1.0, batch * nbytes)))
        ends = np.concatenate([[0], np.cumsum(self._sizes)])
        blocks = -(-len(self._begins) // self._step)
        self.starts: Numbers = ends[np.minimum(np.arange(blocks + 1) * self._step, len(self._begins))]

    def block(self, number: int) -> Block:
        """Return a block."""
        part = slice(number * self._step, (number + 1) * self._step)
        return Block(_ranges(self._begins[part], self._sizes[part]) % self._total, None)


def _blocks(nbytes: NDArray[Any], buffer: int) -> Numbers:
    """Return where blocks of pieces of so many bytes begin, and the end; the first is small, so as to come soon."""
    return _edges((np.cumsum(nbytes) - nbytes + buffer * 3 // 4) // buffer)


def _edges(values: NDArray[Any]) -> Numbers:
    """Return where runs of equal values begin, and the end."""
    if not len(values):
        return np.zeros(1, np.int64)
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    return np.concatenate([np.zeros(1, np.int64), edges, np.array([len(values)])])


def _ranges(begins: Numbers, sizes: Numbers) -> Numbers:
    """Return the numbers of ranges, one after the other."""
    before = np.cumsum(sizes) - sizes
    numbers: Numbers = np.arange(int(sizes.sum())) + np.repeat(begins - before, sizes)
    return numbers


def _pieces(counts: Numbers, low: int, high: int, total: int) -> tuple[Numbers, Numbers, Numbers]:
    """Return the units that a stretch of their records touches, and from where to where in each.

    Args:
        counts: Records of each unit, in the order in which they follow each other.
        low: First record.
        high: The one after the last; may lie beyond all, where the sequence begins anew.
        total: Of the counts.
    """
    edges = np.concatenate([[0], np.cumsum(counts)])
    parts: list[tuple[Numbers, Numbers, Numbers]] = [(np.zeros(0, np.int64),) * 3]
    while low < high:
        begin = low % total
        end = min(begin + high - low, total)
        first = int(np.searchsorted(edges, begin, "right")) - 1
        last = int(np.searchsorted(edges, end, "left"))
        numbers = np.arange(first, last)
        parts.append(
            (numbers, np.maximum(begin - edges[numbers], 0), np.minimum(end - edges[numbers], counts[numbers]))
        )
        low += end - begin
    joined = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    return joined[0], joined[1], joined[2]
