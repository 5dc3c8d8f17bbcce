"""From what a user calls a hash to the weight that has it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import duckdb

from tensordb.catalog import weights
from tensordb.catalog.weights import WeightRow
from tensordb.errors import InvalidInputError, WeightNotFoundError

_DIGITS = 64
_FEWEST = 8
_HASH = re.compile(f"[0-9a-f]{{{_FEWEST},{_DIGITS}}}")


def check_text(text: Any, what: str = "hash") -> str:
    """Return a hash, or the beginning of one, as it was given.

    Raises:
        InvalidInputError: It is neither.
    """
    if not isinstance(text, str) or _HASH.fullmatch(text.lower()) is None:
        named = f"; list_weights(name={text!r}) gives those of that name" if isinstance(text, str) and text else ""
        raise InvalidInputError(
            f"{what} is {text!r}; give the {_DIGITS} hexadecimal digits of a hash, or at least its first "
            f"{_FEWEST}{named}"
        )
    return text


def span_of(text: Any, what: str = "hash") -> tuple[bytes, bytes]:
    """Return the first and the last content id that begins as a text does."""
    digits = check_text(text, what).lower()
    return bytes.fromhex(digits.ljust(_DIGITS, "0")), bytes.fromhex(digits.ljust(_DIGITS, "f"))


def find(con: duckdb.DuckDBPyConnection, text: Any) -> WeightRow:
    """Return the weight of a hash; WeightNotFoundError when only deltas have it, or nothing."""
    rows = _having(con, text, "hash")
    for row in rows:
        if row.base_id is None:
            return row
    if rows:
        raise WeightNotFoundError(
            f"hash {text!r} is that of a delta and of no weight; use load_delta, delete_delta or list_deltas"
        )
    raise nothing(text, "weight")


def find_any(con: duckdb.DuckDBPyConnection, text: Any, what: str = "hash") -> WeightRow:
    """Return the weight of a hash, or else a delta."""
    rows = _having(con, text, what)
    if not rows:
        raise nothing(text, "weight or delta")
    return min(rows, key=lambda row: row.base_id is not None)


def find_all(con: duckdb.DuckDBPyConnection, texts: Sequence[Any]) -> dict[str, WeightRow]:
    """Return the weight, or else a delta, of each of these hashes; those that are whole are looked up together."""
    whole = [each for each in texts if isinstance(each, str) and len(each) == _DIGITS]
    rows = weights.with_contents(con, [span_of(each)[0] for each in whole]) if whole else []
    known = {row.content_id: row for row in sorted(rows, key=lambda row: row.base_id is None)}
    return {each: known.get(span_of(each)[0]) or find_any(con, each) for each in texts}


def find_deltas(con: duckdb.DuckDBPyConnection, text: Any, base: Any = None) -> list[WeightRow]:
    """Return the deltas of a hash, one for each base it was stored with, or the one with this base."""
    rows = [row for row in _having(con, text, "hash") if row.base_id is not None]
    if base is not None:
        low, high = span_of(base, "base_hash")
        rows = [row for row in rows if row.base_id is not None and low <= row.base_id <= high]
    if not rows:
        raise nothing(text, "delta" if base is None else f"delta with the base {base!r} and")
    return rows


def exists(con: duckdb.DuckDBPyConnection, text: Any, *, deltas: bool) -> bool:
    """Tell whether a weight, or a delta, has this hash."""
    return any((row.base_id is not None) == deltas for row in _having(con, text, "hash"))


def _having(con: duckdb.DuckDBPyConnection, text: Any, what: str) -> list[WeightRow]:
    rows = weights.between(con, *span_of(text, what))
    contents = sorted({row.content_id.hex() for row in rows})
    if len(contents) > 1:
        shown = ", ".join(contents[:4]) + (", …" if len(contents) > 4 else "")
        raise InvalidInputError(f"{what} {text!r} begins {len(contents)} hashes ({shown}); give more of it")
    return rows


def nothing(text: Any, kind: str) -> WeightNotFoundError:
    """Return the error for a hash that nothing has."""
    return WeightNotFoundError(f"no {kind} has the hash {text!r}; list_weights() and list_deltas() say what there is")
