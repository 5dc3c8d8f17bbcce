"""Which tensors are the same memory, or overlap in it: what has to be stored once, and how it is seen again.

Rules: tensors with the same memory, shape, strides and dtype are one source. Tensors that overlap otherwise are views
of one source, the span of memory that they lie in. All others are sources of their own, also when they share a
storage. Expanded tensors and lazy conjugates and negations have values that their memory does not spell, so they take
part only when they are the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from tensordb.checkpoints.tree.memory import Extent, overlapping, span_of
from tensordb.tensors import dtype_name


@dataclass(frozen=True, slots=True)
class View:
    """A tensor within a span of memory; offset and strides count elements of its dtype."""

    source: int
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


Reference = int | View
"""A whole source by its number, or a view of one."""


class Source(NamedTuple):
    """Memory that has to be stored.

    Attributes:
        first: Number of the first of the given tensors that lies in it.
        tensor: Its values: that tensor, or the span as a tensor of one dimension.
        is_span: Whether it is a span.
    """

    first: int
    tensor: torch.Tensor
    is_span: bool


class _Group(NamedTuple):
    first: int
    begin: int
    tensor: torch.Tensor


def share(tensors: Sequence[torch.Tensor]) -> tuple[list[Reference], list[Source]]:
    """Return for each dense tensor what it refers to, and the sources in the order of their first tensors."""
    firsts: dict[Any, int] = {}
    same = [firsts.setdefault(_sameness(tensor, index), index) for index, tensor in enumerate(tensors)]
    groups = {index: group for members, group in _groups(tensors, firsts.values()) for index in members}
    numbers: dict[int, int] = {}
    references: list[Reference] = []
    sources: list[Source] = []
    for index, first in enumerate(same):
        group = groups.get(first)
        number = numbers.setdefault(first if group is None else group.first, len(sources))
        if number == len(sources):
            sources.append(Source(index, tensors[index] if group is None else group.tensor, group is not None))
        references.append(number if group is None else _view(tensors[index], group.begin, number))
    return references, sources


def _sameness(tensor: torch.Tensor, index: int) -> Any:
    """Return what tensors share that are the same; each without elements is the same as itself alone."""
    if tensor.numel() == 0:
        return index
    bits = (tensor.is_conj(), tensor.is_neg()) if tensor.is_conj() or tensor.is_neg() else None
    stride = None if tensor.is_contiguous() else tensor.stride()  # of an axis of one element it may be any
    return (tensor.data_ptr(), tensor.dtype, tensor.shape, stride, tensor.device, bits)


def _groups(tensors: Sequence[torch.Tensor], indices: Iterable[int]) -> Iterator[tuple[list[int], _Group]]:
    devices: dict[torch.device, list[Extent]] = defaultdict(list)
    for index in indices:
        extent = Extent.of(tensors[index], index)
        if extent is not None:
            devices[tensors[index].device].append(extent)
    for extents in devices.values():
        for members in overlapping(extents, tensors):
            begin, span = span_of([tensors[index] for index in members])
            yield members, _Group(members[0], begin, span)


def _view(tensor: torch.Tensor, begin: int, source: int) -> View:
    offset = (tensor.data_ptr() - begin) // tensor.itemsize
    return View(source, dtype_name(tensor.dtype), offset, tuple(tensor.shape), tensor.stride())
