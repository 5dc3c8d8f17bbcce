"""Integer arrays as runs, for the way to another process: a million rows of pages are a few hundred runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[Any]
_WORTH_IT = 4
"""Elements in a run, on average, from which on runs are smaller and soon made."""


@dataclass(frozen=True, slots=True)
class Runs:
    """An array in which each element is the one before it plus `step`, but where a run begins."""

    firsts: Integers
    lengths: NDArray[np.int64]
    step: int

    def array(self) -> Integers:
        """Return the array."""
        begins = np.cumsum(self.lengths) - self.lengths
        values = np.repeat(self.firsts, self.lengths)
        if self.step:
            values += (np.arange(len(values)) - np.repeat(begins, self.lengths)).astype(values.dtype) * self.step
        return values


def packed(array: Integers, step: int) -> Integers | Runs:
    """Return an array as runs, or as it is where those would not be smaller."""
    heads = np.flatnonzero(array[1:] - array[:-1] != step) + 1
    if len(array) < _WORTH_IT * (len(heads) + 1):
        return array
    begins = np.concatenate([[0], heads])
    return Runs(array[begins], np.diff(begins, append=len(array)), step)


def unpacked(form: Integers | Runs) -> Integers:
    """Return what was `packed`."""
    return form.array() if isinstance(form, Runs) else form
