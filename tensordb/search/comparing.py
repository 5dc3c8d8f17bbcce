"""Comparing a block with queries by one matrix product in the block's precision, with a bound for its error.

The bound holds for any order of summation (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), so
that no row can be missed by rounding: each that may be a hit within it is scored again in float64, by `scoring`.
"""

from __future__ import annotations

import math

import numpy as np

from tensordb.search.asked import Asked, Floats
from tensordb.search.blocks import Block, Rows
from tensordb.search.query import Metric

_USUAL = {4: (1e-15, 1e15), 8: (1e-140, 1e140)}
"""By element size, the norms whose squares and inverses neither overflow nor vanish."""


def keys_of(metric: Metric, block: Block, asked: Asked) -> Rows:
    """Compare every row with every query: ``[queries, rows]`` in the block's precision, larger for what is nearer."""
    rows = block.rows
    queries = asked.narrow if rows.dtype == np.float32 else asked.vectors
    # A matrix-vector product reads the rows once; as a product of matrices the same takes twice as long.
    keys: Rows = (rows @ queries[0])[None] if len(queries) == 1 else queries @ rows.T
    if metric == "cosine":
        keys *= block.inverse_norms
    elif metric == "l2":
        keys *= 2
        keys -= block.squares
    return keys


def keys_at(metric: Metric, ranks: Floats, asked: Asked) -> Floats:
    """Return the keys that rows of these ranks have, without the error of a product."""
    if metric == "cosine":
        return ranks * asked.norms
    return ranks if metric == "dot" else asked.squares - np.square(ranks)


def doubt_of(metric: Metric, block: Block, asked: Asked) -> Floats:
    """Return by how much a key may be wrong, for each query; infinite where nothing is known."""
    limits = np.finfo(block.rows.dtype)
    low, high = _USUAL[block.rows.dtype.itemsize]
    elements, unit, most = block.rows.shape[1], float(limits.eps) / 2, block.largest
    share = (elements + 4) * unit
    if share >= 0.5 or not most <= high or (metric == "cosine" and block.smallest < low):
        return np.full(len(asked.norms), math.inf)
    share /= 1 - share
    lost = elements * float(limits.tiny) * (1 + most + asked.norms)  # by values and products that vanish
    if metric == "cosine":
        doubt = 2 * share * asked.norms + lost / low
    elif metric == "dot":
        doubt = share * most * asked.norms + lost
    else:
        doubt = 2 * (share * most * asked.norms + lost) + 16 * unit * (most * most + asked.squares)
    return doubt if asked.norms.max() <= high else np.where(asked.norms <= high, doubt, math.inf)
