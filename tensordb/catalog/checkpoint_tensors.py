"""SQL for the tensors of checkpoints: what they are stored as, and which objects checkpoints name.

Their rows come and go with those of their checkpoints, in `checkpoints`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import duckdb

from tensordb.catalog.deltas import CHAIN_COLUMNS, CHAIN_JOINS, Chain
from tensordb.model import TensorSpec


class TensorRow(NamedTuple):
    """A tensor of a checkpoint."""

    position: int
    name: str
    object_id: bytes
    spec_id: int
    norm: float | None


class StoredTensor(NamedTuple):
    """A tensor of a checkpoint with what it is and where.

    Attributes:
        content_id: Empty when its object is missing.
        nbytes: Raw bytes.
    """

    position: int
    name: str
    object_id: bytes
    content_id: bytes
    spec: TensorSpec
    nbytes: int
    stored_nbytes: int


class NamedTensor(NamedTuple):
    """A tensor of a checkpoint, or with the name "" its document, with what it holds.

    Attributes:
        content_id: Empty when its object is missing.
    """

    number: int
    run: str
    step: int | None
    name: str
    object_id: bytes
    content_id: bytes


def of_checkpoint(con: duckdb.DuckDBPyConnection, number: int) -> list[TensorRow]:
    """Return the tensors of a checkpoint in their order."""
    rows = con.execute(
        "SELECT position, name, object_id, spec_id, norm FROM tensordb.checkpoint_tensors WHERE number = ? "
        "ORDER BY position",
        [number],
    )
    return [TensorRow(*row) for row in rows.fetchall()]


def stored_tensors(con: duckdb.DuckDBPyConnection, number: int) -> list[StoredTensor]:
    """Return the tensors of a checkpoint in their order, with their specs and sizes."""
    rows = con.execute(
        """
        SELECT t.position, t.name, t.object_id, coalesce(o.content_id, ''::BLOB), s.dtype, s.shape, s.nbytes,
            coalesce(o.stored_nbytes, 0)
        FROM tensordb.checkpoint_tensors t JOIN tensordb.specs s USING (spec_id)
            LEFT JOIN tensordb.objects o USING (object_id)
        WHERE t.number = ? ORDER BY t.position""",
        [number],
    )
    return [
        StoredTensor(position, name, object_id, content_id, TensorSpec(dtype, tuple(shape)), nbytes, stored_nbytes)
        for position, name, object_id, content_id, dtype, shape, nbytes, stored_nbytes in rows.fetchall()
    ]


def chains(con: duckdb.DuckDBPyConnection, number: int) -> dict[str, Chain]:
    """Return the chains that end with the tensors of a checkpoint, by their names."""
    rows = con.execute(
        f"""
        SELECT t.name, {CHAIN_COLUMNS}
        FROM tensordb.checkpoint_tensors t JOIN tensordb.objects o ON o.object_id = t.object_id {CHAIN_JOINS}
        WHERE t.number = ?""",
        [number],
    )
    return {name: Chain(*row) for name, *row in rows.fetchall()}


def named_tensors(con: duckdb.DuckDBPyConnection, run_id: int | None = None) -> list[NamedTensor]:
    """Return all tensors and documents of the checkpoints of a run, or of all."""
    rows = con.execute(
        """
        SELECT c.number, r.name, c.step, t.name, t.object_id, coalesce(o.content_id, ''::BLOB)
        FROM (
            SELECT number, name, object_id FROM tensordb.checkpoint_tensors
            UNION ALL
            SELECT number, '', document_id FROM tensordb.checkpoints WHERE document_id IS NOT NULL) t
        JOIN tensordb.checkpoints c USING (number) JOIN tensordb.runs r USING (run_id)
        LEFT JOIN tensordb.objects o ON o.object_id = t.object_id
        WHERE $1 IS NULL OR c.run_id = $1 ORDER BY c.number""",
        [run_id],
    )
    return [NamedTensor(*row) for row in rows.fetchall()]


def still_named(con: duckdb.DuckDBPyConnection, object_ids: Sequence[bytes]) -> set[bytes]:
    """Return which of these objects checkpoints name."""
    rows = con.execute(
        """
        SELECT object_id FROM tensordb.checkpoint_tensors WHERE object_id IN (SELECT unnest($1::BLOB[]))
        UNION SELECT document_id FROM tensordb.checkpoints WHERE document_id IN (SELECT unnest($1::BLOB[]))""",
        [list(object_ids)],
    )
    return {object_id for (object_id,) in rows.fetchall()}


def references(con: duckdb.DuckDBPyConnection, numbers: Iterable[int]) -> dict[bytes, int]:
    """Return how often checkpoints name each object, documents included."""
    wanted = list(numbers)
    rows = con.execute(
        """
        SELECT object_id FROM tensordb.checkpoint_tensors WHERE number IN (SELECT unnest($1::BIGINT[]))
        UNION ALL SELECT document_id FROM tensordb.checkpoints
        WHERE number IN (SELECT unnest($1::BIGINT[])) AND document_id IS NOT NULL""",
        [wanted],
    )
    return dict(Counter(object_id for (object_id,) in rows.fetchall()))
