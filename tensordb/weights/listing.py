"""Which weights and deltas there are, what is known of them, and deleting them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import duckdb

from tensordb.catalog import documents, objects, weights
from tensordb.catalog.calls import check_calls
from tensordb.catalog.weights import WeightRow
from tensordb.engine import Database
from tensordb.errors import InvalidInputError
from tensordb.weights import finding
from tensordb.weights.weight import WeightInfo, WeightStorageInfo, info_of, storage_info_of


def exists(db: Database, text: Any, *, delta: bool) -> bool:
    """Tell whether a weight, or a delta, has this hash."""
    with db.catalog.read() as con:
        return finding.exists(con, text, deltas=delta)


def info(db: Database, text: Any) -> WeightInfo:
    """Return what is known of a weight, or of a delta."""
    with db.catalog.read() as con:
        return _infos(con, [finding.find_any(con, text)])[0]


def weights_where(db: Database, where: Any, params: Any, labelled: Mapping[str, str | None]) -> list[WeightInfo]:
    """Return the weights that a condition of the user's matches, with a label that has all these parts."""
    _check_condition(where, params)
    wanted = {key: _check_part(key, value) for key, value in labelled.items() if value is not None}
    with db.catalog.read() as con:
        found = _infos(con, weights.select(con, deltas=False, where=where, params=params))
    return [
        each
        for each in found
        if not wanted
        or any(all(getattr(label, key) == value for key, value in wanted.items()) for label in each.labels)
    ]


def deltas_from(db: Database, base: Any) -> list[WeightInfo]:
    """Return the deltas that were stored with a base, or all."""
    with db.catalog.read() as con:
        if base is None:
            return _infos(con, weights.select(con, deltas=True, where=None, params=None))
        rows = weights.from_base(con, *finding.span_of(base, "base_hash"))
        if len({row.base_id for row in rows}) > 1:
            raise InvalidInputError(f"base_hash {base!r} is the beginning of several hashes; give more of it")
        return _infos(con, rows)


def delete(db: Database, text: Any) -> None:
    """Delete a weight."""
    with db.catalog.write("deleting a weight") as con:
        _remove(con, [finding.find(con, text)])


def delete_deltas(db: Database, text: Any, base: Any) -> None:
    """Delete the deltas of a hash, or the one with this base."""
    with db.catalog.write("deleting a delta") as con:
        _remove(con, finding.find_deltas(con, text, base))


def storage_info(db: Database) -> WeightStorageInfo:
    """Return the sums over all weights and deltas."""
    with db.catalog.read() as con:
        return storage_info_of(weights.storage(con))


def _infos(con: duckdb.DuckDBPyConnection, rows: Sequence[WeightRow]) -> list[WeightInfo]:
    labels = weights.labels(con, [row.number for row in rows]) if rows else {}
    return [info_of(row, labels.get(row.number, [])) for row in rows]


def _remove(con: duckdb.DuckDBPyConnection, rows: Sequence[WeightRow]) -> None:
    objects.release(con, weights.remove(con, [row.number for row in rows]))


def _check_condition(where: Any, params: Any) -> None:
    if where is not None and (not isinstance(where, str) or not where.strip()):
        raise InvalidInputError(f"where is {where!r}; give SQL text such as \"dtype = 'float32'\", or None")
    if where is not None:
        documents.check_text(where, "where")
        check_calls(where)
    if params is not None and (isinstance(params, str | bytes) or not isinstance(params, Sequence | Mapping)):
        raise InvalidInputError(f"params is {params!r}; give a sequence for ?, or a mapping for $name")
    if params and where is None:
        raise InvalidInputError(f"params {params!r} were given without a condition to bind them in")


def _check_part(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidInputError(f"{key} is {value!r}; give text, or None for any")
    return value
