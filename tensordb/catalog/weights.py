"""SQL for the tables of weights and of their labels.

A weight is a content that a user stored: by itself, with no base, or as a delta from another content. Invariants: there
is one row for each content and base, which holds one reference to its object; its labels come and go with it. Numbers
grow with time.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import duckdb

from tensordb.catalog.failures import user_sql
from tensordb.catalog.ids import first_sequence
from tensordb.catalog.rows import first, run, scalar
from tensordb.errors import IntegrityError, InvalidQueryError


class WeightRow(NamedTuple):
    """One weight as the catalog knows it.

    Attributes:
        number: Microsecond of its making, which orders weights.
        base_id: Content id of the base that a delta was stored with.
        created_at: UTC without zone.
        max_error: What the user allowed a delta to differ by.
        relative_l2: Measured when it was stored; likewise `max_abs`.
        deltas: How many its chain has up to it, 0 when it is stored by itself.
    """

    number: int
    content_id: bytes
    base_id: bytes | None
    object_id: bytes
    created_at: dt.datetime
    max_error: float | None
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    stored_nbytes: int
    compression: str
    quantization: str
    relative_l2: float
    max_abs: float
    deltas: int


class NewWeight(NamedTuple):
    """A weight about to be inserted; `relative_l2` and `max_abs` where the object does not know them."""

    content_id: bytes
    base_id: bytes | None
    object_id: bytes
    spec_id: int
    max_error: float | None
    relative_l2: float | None
    max_abs: float | None


class LabelRow(NamedTuple):
    """A name that a weight was stored under; the fields are the table's columns in order."""

    number: int
    position: int
    name: str | None
    layer_type: str | None
    model_name: str | None
    metadata: str
    facts: bytes | None


class NamedWeight(NamedTuple):
    """What a weight is stored as."""

    content_id: bytes
    base_id: bytes | None
    object_id: bytes


class StorageRow(NamedTuple):
    """Sums over all weights.

    Attributes:
        objects: Objects that they are read from, bases included.
        shared: Those that checkpoints or records name too.
        changes: Those that are stored as differences.
    """

    weights: int
    deltas: int
    labels: int
    nbytes: int
    objects: int
    stored_nbytes: int
    shared: int
    changes: int


_ROW = """
    SELECT w.number, w.content_id, w.base_id, w.object_id, w.created_at, w.max_error, s.dtype, s.shape, s.nbytes,
        coalesce(o.stored_nbytes, 0), coalesce(o.compression, ''), coalesce(o.quantization, ''),
        coalesce(w.relative_l2, o.relative_l2, 0), coalesce(w.max_abs, o.max_abs, 0), coalesce(d.length, 0)
    FROM tensordb.weights w JOIN tensordb.specs s USING (spec_id)
        LEFT JOIN tensordb.objects o ON o.object_id = w.object_id
        LEFT JOIN tensordb.deltas d ON d.object_id = w.object_id"""


def between(con: duckdb.DuckDBPyConnection, low: bytes, high: bytes) -> list[WeightRow]:
    """Return the weights, deltas included, whose content ids are from `low` to `high`, oldest first."""
    return _rows(run(con, f"{_ROW} WHERE w.content_id BETWEEN ? AND ? ORDER BY w.number", [low, high]))


def with_contents(con: duckdb.DuckDBPyConnection, content_ids: Sequence[bytes]) -> list[WeightRow]:
    """Return the weights, deltas included, that have these contents, oldest first."""
    return _rows(
        con.execute(f"{_ROW} WHERE w.content_id IN (SELECT unnest(?::BLOB[])) ORDER BY w.number", [list(content_ids)])
    )


def numbers_of(con: duckdb.DuckDBPyConnection, content_ids: Sequence[bytes]) -> dict[tuple[bytes, bytes | None], int]:
    """Return the numbers of the weights that have these contents, by content id and base."""
    rows = con.execute(
        "SELECT content_id, base_id, number FROM tensordb.weights WHERE content_id IN (SELECT unnest(?::BLOB[]))",
        [list(content_ids)],
    ).fetchall()
    return {(content_id, base_id): number for content_id, base_id, number in rows}


def from_base(con: duckdb.DuckDBPyConnection, low: bytes, high: bytes) -> list[WeightRow]:
    """Return the deltas whose bases' content ids are from `low` to `high`, oldest first."""
    return _rows(run(con, f"{_ROW} WHERE w.base_id BETWEEN ? AND ? ORDER BY w.number", [low, high]))


def select(con: duckdb.DuckDBPyConnection, *, deltas: bool, where: str | None, params: Any) -> list[WeightRow]:
    """Return the weights, or the deltas, with a label that matches a condition of the user's, oldest first."""
    kind = f"w.base_id IS {'NOT ' if deltas else ''}NULL"
    if where is None:
        return _rows(con.execute(f"{_ROW} WHERE {kind} ORDER BY w.number"))
    # A comment at the end of the user's text must not swallow what follows: hence the line breaks.
    text = f"SELECT DISTINCT hash, base_hash FROM history.weights WHERE (\n{where}\n)"
    with user_sql(where, " (the columns are those of history.weights)"):
        if ";" in text and len(con.extract_statements(text)) != 1:
            raise InvalidQueryError(f"{where!r} cannot be used: it ends the statement that it is a part of")
        found = (con.execute(text, params) if params else con.execute(text)).fetchall()
    keys = {(bytes.fromhex(content), base and bytes.fromhex(base)) for content, base in found}
    rows = with_contents(con, list({content for content, _ in keys}))
    return [row for row in rows if (row.base_id is not None) == deltas and (row.content_id, row.base_id) in keys]


def add(con: duckdb.DuckDBPyConnection, new: Sequence[NewWeight]) -> list[int]:
    """Insert weights and return their numbers; the references are the caller's to count."""
    if not new:
        return []
    number = first_sequence(scalar(con.execute("SELECT max(number) FROM tensordb.weights")))
    numbers = list(range(number, number + len(new)))
    con.execute(
        """
        INSERT INTO tensordb.weights (number, created_at, content_id, base_id, object_id, spec_id, max_error,
            relative_l2, max_abs)
        SELECT unnest($1::BIGINT[]), $2, unnest($3::BLOB[]), unnest($4::BLOB[]), unnest($5::BLOB[]),
            unnest($6::INTEGER[]), unnest($7::DOUBLE[]), unnest($8::DOUBLE[]), unnest($9::DOUBLE[])""",
        [numbers, _now(), *(list(column) for column in zip(*new, strict=True))],
    )
    return numbers


def widen(con: duckdb.DuckDBPyConnection, number: int, max_error: float, relative_l2: float, max_abs: float) -> None:
    """Have the bound and the errors of a delta hold for one more tensor that it stands for."""
    con.execute(
        "UPDATE tensordb.weights SET max_error = greatest(max_error, ?), relative_l2 = greatest(relative_l2, ?), "
        "max_abs = greatest(max_abs, ?) WHERE number = ?",
        [max_error, relative_l2, max_abs, number],
    )


def labels(con: duckdb.DuckDBPyConnection, numbers: Sequence[int]) -> dict[int, list[LabelRow]]:
    """Return the labels of weights, each weight's in the order in which they were given."""
    rows = con.execute(
        "SELECT number, position, name, layer_type, model_name, metadata, facts FROM tensordb.weight_labels "
        "WHERE number IN (SELECT unnest(?::BIGINT[])) ORDER BY number, position",
        [list(numbers)],
    ).fetchall()
    found: dict[int, list[LabelRow]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(LabelRow(*row))
    return found


def set_labels(con: duckdb.DuckDBPyConnection, numbers: Sequence[int], new: Sequence[LabelRow]) -> None:
    """Give weights these labels in place of all that they have."""
    con.execute("DELETE FROM tensordb.weight_labels WHERE number IN (SELECT unnest(?::BIGINT[]))", [list(numbers)])
    if new:
        con.execute(
            "INSERT INTO tensordb.weight_labels SELECT unnest(?::BIGINT[]), unnest(?::INTEGER[]), "
            "unnest(?::VARCHAR[]), unnest(?::VARCHAR[]), unnest(?::VARCHAR[]), unnest(?::VARCHAR[])::JSON, "
            "unnest(?::BLOB[])",
            [list(column) for column in zip(*new, strict=True)],
        )


def remove(con: duckdb.DuckDBPyConnection, numbers: Sequence[int]) -> dict[bytes, int]:
    """Delete weights with their labels; return how many named each object, for the caller to release."""
    gone = con.execute(
        "DELETE FROM tensordb.weights WHERE number IN (SELECT unnest(?::BIGINT[])) RETURNING object_id",
        [list(numbers)],
    ).fetchall()
    con.execute("DELETE FROM tensordb.weight_labels WHERE number IN (SELECT unnest(?::BIGINT[]))", [list(numbers)])
    return dict(Counter(object_id for (object_id,) in gone))


def named_objects(con: duckdb.DuckDBPyConnection) -> list[NamedWeight]:
    """Return what all weights, deltas included, are stored as, oldest first."""
    rows = con.execute("SELECT content_id, base_id, object_id FROM tensordb.weights ORDER BY number").fetchall()
    return [NamedWeight(*row) for row in rows]


def still_named(con: duckdb.DuckDBPyConnection, object_ids: Sequence[bytes]) -> set[bytes]:
    """Return which of these objects weights name."""
    rows = con.execute(
        "SELECT DISTINCT object_id FROM tensordb.weights WHERE object_id IN (SELECT unnest(?::BLOB[]))",
        [list(object_ids)],
    )
    return {object_id for (object_id,) in rows.fetchall()}


def storage(con: duckdb.DuckDBPyConnection) -> StorageRow:
    """Return the sums over all weights; an object that several name counts once."""
    of_weights = """
        SELECT count(*) FILTER (w.base_id IS NULL), count(w.base_id),
            (SELECT count(*) FROM tensordb.weight_labels), coalesce(sum(s.nbytes), 0)::BIGINT
        FROM tensordb.weights w JOIN tensordb.specs s USING (spec_id)"""
    of_objects = """
        WITH RECURSIVE needed AS (
            SELECT DISTINCT object_id FROM tensordb.weights
            UNION
            SELECT d.base_id FROM tensordb.deltas d JOIN needed n ON d.object_id = n.object_id),
        counted AS (
            SELECT object_id, count(*) AS refs FROM (
                SELECT object_id FROM tensordb.weights
                UNION ALL
                SELECT d.base_id FROM tensordb.deltas d JOIN needed n ON d.object_id = n.object_id)
            GROUP BY object_id)
        SELECT count(*), coalesce(sum(o.stored_nbytes), 0)::BIGINT, count(*) FILTER (o.refs > c.refs), count(d.base_id)
        FROM needed n JOIN counted c USING (object_id) JOIN tensordb.objects o USING (object_id)
            LEFT JOIN tensordb.deltas d USING (object_id)"""
    totals = [first(con.execute(text)) for text in (of_weights, of_objects)]
    if totals[0] is None or totals[1] is None:
        raise IntegrityError("the catalog gives no sums over its weights")
    return StorageRow(*totals[0], *totals[1])


def _rows(found: duckdb.DuckDBPyConnection) -> list[WeightRow]:
    return [WeightRow(*row)._replace(shape=tuple(row[7])) for row in found.fetchall()]


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(tzinfo=None)
