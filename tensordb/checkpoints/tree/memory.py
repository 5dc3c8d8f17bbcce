"""Where tensors lie in memory: which of them overlap, and the span of memory that holds several.

Everything is by address, since views made by NumPy or through DLPack overlap without sharing a storage object.
Overlap is exact: the columns of a matrix, split in two, alternate in memory and do not overlap. Only where telling
them apart would take an excessive map of memory do tensors that lie across each other count as overlapping.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

MAX_CELLS = 1 << 24
_ALIGNMENT = 16  # of the widest dtype: a view of any dtype can begin at a multiple of it


class Extent(NamedTuple):
    """The addresses between which a tensor lies; it sorts by them."""

    begin: int
    end: int
    number: int
    is_dense: bool

    @staticmethod
    def of(tensor: torch.Tensor, number: int) -> Extent | None:
        """Return the extent of a tensor, None for one that cannot be seen again as a view of its memory."""
        if tensor.numel() == 0 or tensor.is_conj() or tensor.is_neg():
            return None
        begin, itemsize = tensor.data_ptr(), tensor.itemsize
        if begin % itemsize:
            return None
        if tensor.is_contiguous():
            return Extent(begin, begin + tensor.numel() * itemsize, number, True)
        if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
            return None
        nbytes = reach(tensor) * itemsize
        return Extent(begin, begin + nbytes, number, nbytes == tensor.numel() * itemsize)


def reach(tensor: torch.Tensor) -> int:
    """Return the number of elements from the first to the last of a tensor in memory; it must have some."""
    if tensor.is_contiguous():
        return tensor.numel()
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def overlapping(extents: Iterable[Extent], tensors: Sequence[torch.Tensor]) -> Iterator[list[int]]:
    """Yield the numbers of tensors that hang together by overlaps, in order; those that overlap with none are not."""
    for cluster in _clusters(extents):
        groups = [cluster] if all(extent.is_dense for extent in cluster) else _painted(cluster, tensors)
        for group in groups:
            if len(group) > 1:
                yield sorted(extent.number for extent in group)


def span_of(tensors: Sequence[torch.Tensor]) -> tuple[int, torch.Tensor]:
    """Return address and values of the memory that these tensors lie in, as a tensor of one dimension.

    Its dtype is theirs, or uint8 if they have several. It aliases their storage where one storage holds all of it.
    """
    extents = [extent for tensor in tensors if (extent := Extent.of(tensor, 0)) is not None]
    begin, end = min(extent.begin for extent in extents), max(extent.end for extent in extents)
    dtypes = {tensor.dtype for tensor in tensors}
    dtype = torch.uint8 if len(dtypes) > 1 else tensors[0].dtype
    if len(dtypes) > 1:
        begin -= begin % _ALIGNMENT
    for tensor in tensors:
        storage = tensor.untyped_storage()
        base = storage.data_ptr()
        if base <= begin and end <= base + storage.nbytes() and (begin - base) % dtype.itemsize == 0:
            whole = tensor if tensor.dtype == dtype else _bytes(tensor)
            return begin, whole.as_strided(((end - begin) // dtype.itemsize,), (1,), (begin - base) // dtype.itemsize)
    return begin, _joined(tensors, begin, end).view(dtype)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole storage of a tensor as bytes."""
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage, 0, (storage.nbytes(),), (1,))


def _joined(tensors: Sequence[torch.Tensor], begin: int, end: int) -> torch.Tensor:
    """Copy memory that no single storage holds all of."""
    joined = torch.zeros(end - begin, dtype=torch.uint8, device=tensors[0].device)
    for tensor in tensors:
        held = _bytes(tensor)
        base = held.data_ptr()
        low, high = max(begin, base), min(end, base + held.numel())
        joined[low - begin : high - begin] = held[low - base : high - base]
    return joined


def _clusters(extents: Iterable[Extent]) -> Iterator[list[Extent]]:
    """Yield those that hang together by their extents, two or more."""
    cluster: list[Extent] = []
    end = 0
    for extent in sorted(extents):
        if extent.begin >= end:
            if len(cluster) > 1:
                yield cluster
            cluster = []
        cluster.append(extent)
        end = max(end, extent.end)
    if len(cluster) > 1:
        yield cluster


def _painted(cluster: list[Extent], tensors: Sequence[torch.Tensor]) -> list[list[Extent]]:
    """Group those that overlap, by painting each over a map of the memory and looking at what was there before."""
    begin, end = cluster[0].begin, max(extent.end for extent in cluster)
    runs = [_Runs.of(tensors[extent.number]) for extent in cluster]
    cell = math.gcd(*(extent.begin - begin for extent in cluster), *(step for run in runs for step in run.steps))
    if (end - begin) // cell > MAX_CELLS:
        return [cluster]
    painted = np.full((end - begin) // cell, -1, np.int32)
    group_of = list(range(len(cluster)))
    for number, (extent, run) in enumerate(zip(cluster, runs, strict=True)):
        region = run.within(painted[(extent.begin - begin) // cell :], cell)
        met = {group_of[other] for other in np.unique(region).tolist() if other >= 0}
        if met:
            group_of = [number if group in met else group for group in group_of]
        region[...] = number
    groups: dict[int, list[Extent]] = defaultdict(list)
    for group, extent in zip(group_of, cluster, strict=True):
        groups[group].append(extent)
    return list(groups.values())


class _Runs(NamedTuple):
    """A tensor as runs of memory without gaps; all in bytes."""

    nbytes: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @staticmethod
    def of(tensor: torch.Tensor) -> _Runs:
        itemsize = tensor.itemsize
        axes = [(n, step * itemsize) for n, step in zip(tensor.shape, tensor.stride(), strict=True) if n > 1]
        nbytes = itemsize
        while axes and axes[-1][1] == nbytes:
            nbytes *= axes.pop()[0]
        return _Runs(nbytes, tuple(n for n, _ in axes), tuple(step for _, step in axes))

    @property
    def steps(self) -> tuple[int, ...]:
        return (self.nbytes, *self.strides)

    def within(self, cells: NDArray[np.int32], cell: int) -> NDArray[np.int32]:
        """Return the part of a map of cells, which begins with the tensor, that the tensor covers."""
        shape = (*self.shape, self.nbytes // cell)
        strides = (*(step // cell * cells.itemsize for step in self.strides), cells.itemsize)
        return np.lib.stride_tricks.as_strided(cells, shape, strides)
