"""What a few thousand words tell of a tensor: how noisy its byte planes are, whether anything repeats, what is zero."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tensordb.encoding.filters import Planes
from tensordb.encoding.filters.words import WORDS
from tensordb.encoding.plans import HUFFMAN, ZSTD, Bytes

_RUNS, _RUN = 16, 256
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing (Knuth, The Art of Computer Programming, 6.4)
_PICKED = np.uint64(58)
_SMALL = 8 << 10
_MANY_TWINS = 0.05
_SMOOTH = 0.96


@dataclass(frozen=True, slots=True)
class PlaneProbe:
    """The byte planes of some runs of words.

    Attributes:
        bits: Order-0 entropy of each plane in bits a byte, the most significant plane first.
        smooth: Whether neighbours are so alike that more than single bytes repeats in the planes.
    """

    bits: tuple[float, ...]
    smooth: bool


def probe_planes(width: int, data: Bytes) -> PlaneProbe:
    """Look at the planes of words of `width` bytes in runs spread over the tensor."""
    run = _RUN * width
    if data.nbytes <= _SMALL:
        # Compressing a few hundred bytes is faster than counting them. All but one are often noise.
        first, others = Planes((1, width - 1)).split(data, 1)
        noise = len(HUFFMAN.compress(others)) >= len(others)
        planes = [first] if noise else [first, *others.reshape(width - 1, -1)]
        bits = [8 * len(HUFFMAN.compress(plane)) / len(plane) for plane in planes]
        return PlaneProbe((*bits, *(8.0,) * (width - len(planes))), False)
    if data.nbytes <= _RUNS * run:
        sample = data
    else:
        starts = np.linspace(0, data.nbytes - run, _RUNS).astype(np.int64) // width * width
        sample = np.concatenate([data[start : start + run] for start in starts.tolist()])
    planes = Planes((1,) * width).split(sample, 1)
    words = len(planes[0])
    counts = np.stack([np.bincount(plane, minlength=256) for plane in planes])
    shares = counts / words
    bits = -(shares * np.log2(shares, out=np.zeros_like(shares), where=counts > 0)).sum(axis=1)
    # A small sample looks more regular than its source; the second term corrects that (Miller and Madow, 1955).
    corrected = bits + (np.count_nonzero(counts, axis=1) - 1) / (2 * np.log(2) * words)
    expected = float(np.minimum(corrected, 8).sum()) / 8 * words
    smooth = sample is not data and len(ZSTD.compress(np.concatenate(planes))) < _SMOOTH * expected
    return PlaneProbe(tuple(corrected.tolist()), smooth)


def repeats(data: Bytes, chunk_bytes: int) -> bool:
    """Tell whether pieces of 8 bytes repeat, at any distance within a chunk in the middle of the tensor.

    Which pieces are compared follows from what they hold: where one is picked, so is its twin.
    """
    if data.nbytes <= _SMALL:
        return False
    begin = max(0, data.nbytes - chunk_bytes) // 2 // 64 * 64
    chunk = data[begin : begin + chunk_bytes]
    pieces = chunk[: chunk.nbytes // 8 * 8].view(np.uint64)
    picked = pieces[(pieces * _MULTIPLIER) >> _PICKED == 0]
    picked = picked[picked != 0]
    return len(picked) > 8 and len(np.unique(picked)) < (1 - _MANY_TWINS) * len(picked)


def zeros(data: Bytes, width: int) -> float:
    """Return the share of zero words."""
    words = data.view(WORDS[width])
    sample = words[:: len(words) // 8192 | 1]  # an odd step, to meet all columns of a table
    return 1 - np.count_nonzero(sample) / len(sample)
