"""Which tensors are the same memory, or overlap in it: what has to be stored once, and how it is seen again.

Rules: tensors with the same memory, shape, strides and dtype are one source. Tensors that overlap otherwise are views
of one source, the span of memory that they lie in. All others are sources of their own, also when they share a
storage. Expanded tensors and lazy conjugates and negations have values that their memory does not spell, so they take
part only when they are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


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


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Memory that has to be stored.

    Attributes:
        first: Number of the first of the given tensors that lies in it.
        tensor: Its values: that tensor, or the span as a tensor of one dimension.
        is_span: Whether it is a span.
    """

    first: int
    tensor: torch.Tensor
    is_span: bool


def share(tensors: Sequence[torch.Tensor]) -> tuple[list[Reference], list[Source]]:
    """Return for each dense tensor what it refers to, and the sources in the order of their first tensors."""
    numbers: dict[Any, int] = {}
    references: list[Reference] = []
    sources: list[Source] = []
    for index, tensor in enumerate(tensors):
        number = numbers.setdefault(_sameness(tensor, index), len(sources))
        if number == len(sources):
            sources.append(Source(index, tensor, False))
        references.append(number)
    return references, sources


def _sameness(tensor: torch.Tensor, index: int) -> Any:
    if tensor.numel() == 0:
        return index
    return (
        tensor.data_ptr(),
        tensor.dtype,
        tensor.shape,
        tensor.stride(),
        tensor.device,
        tensor.is_conj(),
        tensor.is_neg(),
    )
