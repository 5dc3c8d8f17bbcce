"""Rows of vectors ready to be compared, and the bounded memory that keeps them between searches.

A block is made of stored objects, which never change, and is known by their ids: it is never stale.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tensordb.forks import mend_after_fork
from tensordb.payloads import Location

CACHE_NBYTES = 256 << 20
"""Bytes of decoded blocks that a database keeps for the next search; 100,000 vectors of 384 float32 take 154 MB."""
_COLUMNS = 1 << 16
"""Elements of a row that are widened to float64 at a time."""

Rows = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Block:
    """Vectors in the dtype they are compared in.

    Attributes:
        rows: Float32 ``[rows, elements]``, where that holds every value of the stored dtype exactly, else float64.
            Rows that are not finite are zeros here.
        squares: Square of each row's L2 norm, in the same dtype.
        inverse_norms: Inverse of each row's norm, 0 for zeros.
        finite: Whether each row is finite, None when all are.
        largest: Largest norm.
        smallest: Smallest norm of a row that is not all zeros; infinite when all are.
        nbytes: Memory that it takes by itself; rows that alias what is stored take none.
        place: Where rows that alias what is stored lie in a mapped file; None for rows of their own memory.
    """

    rows: Rows
    squares: Rows
    inverse_norms: Rows
    finite: NDArray[np.bool_] | None
    largest: float
    smallest: float
    nbytes: int
    place: Location | None = None

    def take(self, positions: NDArray[np.int64]) -> Block:
        """Return some of the rows."""
        finite = None if self.finite is None else self.finite[positions]
        squares, inverses = self.squares[positions], self.inverse_norms[positions]
        return Block(self.rows[positions], squares, inverses, finite, self.largest, self.smallest, 0)


def block_of(stack: torch.Tensor, *, place: Location | None = None) -> Block:
    """Return a stack of vectors ready to be compared; `place` is that of the mapped bytes that it aliases, if any."""
    rows = _comparable(stack)
    finite: NDArray[np.bool_] | None = None
    with np.errstate(over="ignore", invalid="ignore"):
        squares = _square_sums(rows)
        if not np.isfinite(squares).all():  # or they are only too large
            finite = np.asarray(np.isfinite(rows).all(axis=1))
            if not finite.all():
                rows, squares = np.where(finite[:, None], rows, rows.dtype.type(0)), np.where(finite, squares, 0.0)
        norms = np.sqrt(squares)
        present = norms if norms.all() else norms[rows.any(axis=1)]
        inverses = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
        owned = place is None or rows.ctypes.data != stack.data_ptr()
        return Block(
            rows=rows,
            squares=squares.astype(rows.dtype),
            inverse_norms=inverses.astype(rows.dtype),
            finite=None if finite is None or finite.all() else finite,
            largest=float(norms.max(initial=0.0)),
            smallest=float(present.min(initial=np.inf)),
            nbytes=rows.dtype.itemsize * (2 * len(rows) + (rows.size if owned else 0)),
            place=None if owned else place,
        )


def _comparable(stack: torch.Tensor) -> Rows:
    if stack.dtype not in (torch.float32, torch.float64):
        narrow = stack.element_size() < 4  # 16 bits at most: float32 holds them all
        stack = stack.to(torch.float32 if narrow else torch.float64)
    rows: Rows = stack.contiguous().numpy()
    return rows


def _square_sums(rows: Rows) -> NDArray[np.float64]:
    """Return the sum of squares of each row, in float64."""
    total = np.zeros(len(rows))
    for begin in range(0, rows.shape[1], _COLUMNS):
        part = torch.from_numpy(rows[:, begin : begin + _COLUMNS])
        total += torch.linalg.vector_norm(part, dim=1, dtype=torch.float64).numpy() ** 2
    return total


class BlockCache:
    """Blocks by what they are made of, within a number of bytes; safe to use from threads.

    Room is made by dropping what was not used for longest, but nothing that the present search or the one before it
    used: a set larger than the room is then kept in part, instead of each part driving out the next one needed.
    """

    def __init__(self, nbytes: int = CACHE_NBYTES) -> None:
        self._most = nbytes
        self._nbytes = 0
        self._search = 0
        self._released = 0
        self._blocks: OrderedDict[bytes, tuple[Block, int]] = OrderedDict()
        self._lock = threading.Lock()
        mend_after_fork(self)

    @property
    def nbytes(self) -> int:
        """Bytes that the blocks take now."""
        return self._nbytes

    def after_fork(self) -> None:
        """Replace the lock, which another thread may have held when the process forked."""
        self._lock = threading.Lock()

    def begin(self, released: int) -> int:
        """Begin a search; return its number.

        Args:
            released: How many segments the store has let go: what aliases them keeps removed files on the disk.
        """
        with self._lock:
            if released != self._released:
                self._released = released
                for key in [key for key, (block, _) in self._blocks.items() if block.place is not None]:
                    self._drop(key)
            self._search += 1
            return self._search

    def get(self, key: bytes, search: int) -> Block | None:
        """Return a block, None when it is not kept."""
        with self._lock:
            found = self._blocks.get(key)
            if found is None:
                return None
            self._blocks[key] = found[0], search
            self._blocks.move_to_end(key)
            return found[0]

    def put(self, key: bytes, block: Block, search: int) -> None:
        """Keep a block, if there is room or some can be made."""
        with self._lock:
            if key in self._blocks or not self._make_room(block.nbytes, search):
                return
            self._blocks[key] = block, search
            self._nbytes += block.nbytes

    def forget(self, key: bytes) -> None:
        """Drop a block, if it is kept."""
        with self._lock:
            if key in self._blocks:
                self._drop(key)

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._blocks.clear()
            self._nbytes = 0

    def _make_room(self, nbytes: int, search: int) -> bool:
        free, going = self._most - self._nbytes, []
        for key, (block, last) in self._blocks.items():
            if free >= nbytes or last >= search - 1:
                break
            going.append(key)
            free += block.nbytes
        if free < nbytes:
            return False
        for key in going:
            self._drop(key)
        return True

    def _drop(self, key: bytes) -> None:
        self._nbytes -= self._blocks.pop(key)[0].nbytes
