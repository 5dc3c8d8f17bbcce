"""Statistics of a tensor's values, as one line of text and as the bins of a histogram."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tensordb.looking.views import Numbers, sample_of

BINS = 40


@dataclass(frozen=True, slots=True)
class Figures:
    """Of the elements that were read.

    Attributes:
        finite: The finite ones.
        read: How many were read.
        total: How many the tensor has.
        is_complex: Whether they are magnitudes.
    """

    finite: Numbers
    read: int
    total: int
    is_complex: bool

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Figures:
        """Return the figures of a tensor, of a sample when it is large."""
        values = sample_of(tensor)
        return cls(values[np.isfinite(values)], values.size, tensor.numel(), tensor.is_complex())

    def __str__(self) -> str:
        if not self.total:
            return "none"
        if self.read == 1 and self.finite.size:
            return f"{self.finite[0]:.6g}"
        others = self.read - self.finite.size
        parts = []
        if self.finite.size:
            values = self.finite
            with np.errstate(over="ignore", invalid="ignore"):  # of float64 near its limits
                spread = f"mean {values.mean():.4g}, std {values.std():.4g}"
            parts.append(f"{values.min():.4g} to {values.max():.4g}, {spread}")
            parts.append(f"{np.mean(values == 0):.1%} zeros")
        if others:
            parts.append(f"{others:,} not finite")
        text = ("magnitudes: " if self.is_complex else "") + ", ".join(parts)
        return text if self.read == self.total else f"{text} (of {self.read:,} out of {self.total:,} elements)"

    def histogram(self) -> tuple[NDArray[np.int64], Numbers]:
        """Return counts and edges of the bins over the finite values; of integers each bin holds as many."""
        values = self.finite
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        if high / 2 - low / 2 > np.finfo(np.float64).max / 4:  # NumPy cannot cut such a range into bins
            values, low, high = values / 8, low / 8, high / 8
            counts, edges = np.histogram(values, BINS, (low, high))
            return counts.astype(np.int64), edges * 8
        if high - low <= abs(high) * 1e-12:
            low, high = low - 0.5, high + 0.5
        elif abs(high) + abs(low) < 2**52 and not np.mod(values, 1).any():
            step = np.ceil((high - low + 1) / BINS)  # or bins would hold different numbers of integers
            edges = np.arange(low - 0.5, high + step, step)
            return np.histogram(values, edges)[0].astype(np.int64), edges
        counts, edges = np.histogram(values, BINS, (low, high))
        return counts.astype(np.int64), edges
