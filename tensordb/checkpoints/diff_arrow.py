"""The rows of a comparison as an Arrow table."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from tensordb.checkpoints.diff import TensorDiff

_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("change", pa.string()),
        ("dtype_a", pa.string()),
        ("shape_a", pa.list_(pa.int64())),
        ("dtype_b", pa.string()),
        ("shape_b", pa.list_(pa.int64())),
        ("relative_l2", pa.float64()),
        ("cosine", pa.float64()),
        ("max_abs", pa.float64()),
        ("not_finite", pa.int64()),
        ("nbytes", pa.int64()),
        ("stored_nbytes", pa.int64()),
        ("shared_nbytes", pa.int64()),
    ]
)


def table_of(rows: Sequence[TensorDiff]) -> pa.Table:
    """Return the rows as a table."""
    return pa.Table.from_pylist([row.to_dict() for row in rows], schema=_SCHEMA)
