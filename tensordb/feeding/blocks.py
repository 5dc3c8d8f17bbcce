"""Blocks of a schedule in memory, from which batches are picked.

Small records of one spec are decoded page by page into one piece of memory, which the next but one block uses again;
what is picked is copied. Large ones are decoded straight into the batch. Only records of several specs become tensors
one by one.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from tensordb.feeding.schedule import Block
from tensordb.feeding.source import Source
from tensordb.model import TensorSpec
from tensordb.tensors import byte_view, empty, nbytes_of, view_of

_LARGE_NBYTES = 128 << 10
"""Raw bytes from which on a record has an object of its own, and to copy it costs more than a call."""


class Loaded(Protocol):
    """A block that is ready."""

    def batch(self, begin: int, end: int) -> torch.Tensor | list[torch.Tensor]:
        """Return the records that come from `begin` to `end` (exclusive): stacked, or a list if their specs differ."""


class Memory:
    """One piece of memory, grown when needed."""

    def __init__(self) -> None:
        self._room = torch.empty(0, dtype=torch.uint8)

    def tensor(self, spec: TensorSpec) -> torch.Tensor:
        """Return a tensor in it, whose values are whatever was there."""
        nbytes = nbytes_of(spec)
        if self._room.numel() < nbytes:
            self._room = empty(TensorSpec("uint8", (nbytes,)))
        return view_of(byte_view(self._room)[:nbytes], spec)


def load(source: Source, block: Block, memory: Memory) -> Loaded:
    """Read a block.

    Raises:
        IntegrityError: A record is damaged.
    """
    spec = source.common_spec(block.positions)
    if spec is None:
        return _Listed(source, block)
    if not 0 < nbytes_of(spec) <= _LARGE_NBYTES:
        return _Direct(source, block)
    out = memory.tensor(TensorSpec(spec.dtype, (len(block.positions), *spec.shape)))
    source.fill(block.positions, out)
    return _Stacked(block, spec, out)


class _Stacked:
    def __init__(self, block: Block, spec: TensorSpec, rows: torch.Tensor) -> None:
        self._turns = block.turns
        self._spec = spec
        self._rows = byte_view(rows).reshape(len(rows), -1)

    def batch(self, begin: int, end: int) -> torch.Tensor:
        out = empty(TensorSpec(self._spec.dtype, (end - begin, *self._spec.shape)))
        flat = byte_view(out).reshape(end - begin, -1)
        if self._turns is None:
            flat[:] = self._rows[begin:end]
        else:
            # Not torch: its threads, of which one is enough, would keep the cores from those that decode. Clipping,
            # which never happens, lets NumPy write in place.
            self._rows.take(self._turns[begin:end], axis=0, out=flat, mode="clip")
        return out


class _Direct:
    def __init__(self, source: Source, block: Block) -> None:
        self._source = source
        self._block = block

    def batch(self, begin: int, end: int) -> torch.Tensor | list[torch.Tensor]:
        return self._source.tensors(self._block.picked(begin, end))


class _Listed:
    def __init__(self, source: Source, block: Block) -> None:
        self._tensors = source.tensors(block.positions)
        self._turns = np.arange(len(block.positions)) if block.turns is None else block.turns

    def batch(self, begin: int, end: int) -> list[torch.Tensor]:
        return [self._tensors[turn] for turn in self._turns[begin:end].tolist()]
