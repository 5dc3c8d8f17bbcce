"""Memory for batches: used again once nobody holds what was in it, and written to row by row, wherever rows belong."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tensordb.encoding.addresses import address_of
from tensordb.encoding.spreading import spread_bytes
from tensordb.model import TensorSpec
from tensordb.tensors import byte_view, dtype_from_name, empty, nbytes_of

_WORTH_KEEPING = 4096
"""Bytes from which on memory is used again; the allocator gives out less at once."""


class Room:
    """Gives out tensors and takes their memory back when they, and all that aliases them, are gone.

    What the system gives out anew it clears first, page by page, which takes as long as decoding does. Any thread may
    use it, and without a lock, which a thread that lets a tensor go could hold already.
    """

    def __init__(self, most_nbytes: int) -> None:
        """Take how many bytes to keep for the next time."""
        self._most_nbytes = most_nbytes
        self._free: dict[int, list[NDArray[np.uint8]]] = {}
        self._lent: dict[int, weakref.ref[Any]] = {}

    @property
    def kept_nbytes(self) -> int:
        """Bytes that wait for the next time."""
        return sum(size * len(pieces) for size, pieces in list(self._free.items()))

    def tensor(self, spec: TensorSpec) -> torch.Tensor:
        """Return a contiguous tensor whose values are whatever was there."""
        nbytes = nbytes_of(spec)
        if nbytes < _WORTH_KEEPING:
            return empty(spec)
        try:
            memory = self._free[nbytes].pop()
        except (KeyError, IndexError):
            memory = byte_view(empty(TensorSpec("uint8", (nbytes,))))
        lent = memory[:]  # what the tensor's storage holds, and what lives as long as that does
        key, room = id(lent), weakref.ref(self)

        def back(_: Any) -> None:
            mine = room()
            if mine is not None:
                mine._give_back(key, memory)

        self._lent[key] = weakref.ref(lent, back)
        return torch.from_numpy(lent).view(dtype_from_name(spec.dtype)).reshape(spec.shape)

    def _give_back(self, key: int, memory: NDArray[np.uint8]) -> None:
        self._lent.pop(key, None)
        if self.kept_nbytes + memory.nbytes > self._most_nbytes:
            self._free.clear()  # of other sizes, mostly
        if memory.nbytes <= self._most_nbytes:
            self._free.setdefault(memory.nbytes, []).append(memory)


class Rows:
    """Rows of one spec in several tensors, numbered through; all must live as long as this is written to.

    Attributes:
        row_nbytes: Bytes of a row.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        """Take contiguous tensors ``[rows, …]`` that have elements."""
        self._tensors = tensors
        self._flat = [byte_view(tensor).reshape(len(tensor), -1) for tensor in tensors]
        self._starts = np.array([0, *accumulate(map(len, tensors))])
        self._bases = np.array([address_of(flat) for flat in self._flat], np.int64)
        self.row_nbytes: int = self._flat[0].shape[1]

    def addresses(self, places: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return where rows are in memory."""
        which = self._starts.searchsorted(places, "right") - 1
        addresses: NDArray[np.int64] = self._bases[which] + (places - self._starts[which]) * self.row_nbytes
        return addresses.view(np.uint64)

    def row(self, place: int) -> torch.Tensor:
        """Return one row."""
        which = int(self._starts.searchsorted(place, "right")) - 1
        return self._tensors[which][place - int(self._starts[which])]

    def stretch(self, places: NDArray[np.int64]) -> torch.Tensor | None:
        """Return these rows as one tensor; None unless they follow each other in one."""
        first, last = int(places[0]), int(places[-1])
        which = int(self._starts.searchsorted(first, "right")) - 1
        if last - first != len(places) - 1 or last >= self._starts[which + 1] or (places[1:] <= places[:-1]).any():
            return None
        begin = first - int(self._starts[which])
        return self._tensors[which][begin : begin + len(places)]

    def put(self, places: NDArray[np.int64], rows: NDArray[np.uint8]) -> None:
        """Write the bytes of rows, ``[places, bytes]``."""
        if spread_bytes(rows, self.addresses(places)):
            return
        which = self._starts.searchsorted(places, "right") - 1
        for number in np.unique(which).tolist():
            chosen = np.flatnonzero(which == number)
            self._flat[number][places[chosen] - self._starts[number]] = rows[chosen]
