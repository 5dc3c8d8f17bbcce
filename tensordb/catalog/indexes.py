"""Indexes on metadata fields: for each a table of value and sequence number, with a key on the value.

The table is one of its own, as a key on the record table would hinder DuckDB to widen the metadata column, and one on
a field of a struct is not used at all. Invariants: it has the type of the field, and a row for each record whose field
is not NULL, changed in the same transaction. A condition is always checked again on the records that it leads to.

Only text has them, of which DuckDB reads a whole column slowly, and only ``metadata.field = 'text'`` is looked up,
where the user's condition needs it to be true: DuckDB uses such a key for equality and not for ranges. Beyond `MOST`
records reading all of the column is faster than finding each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import duckdb

from tensordb.catalog.fields import FieldType, StructOf, columns, is_name, quoted, sql_type
from tensordb.catalog.rows import first, run, scalar
from tensordb.errors import IntegrityError

if TYPE_CHECKING:
    from tensordb.catalog.datasets import DatasetRow
    from tensordb.catalog.records import Selection

MOST = 64
"""Records that an index leads to at most."""
_MOST_KNOWN = 256
_MOST_NUMBER = 1 << 62
_LOOKED_UP = 1024
"""Entries that `faults` looks up; for more than 2048 DuckDB reads the table."""
_known: dict[str, tuple[Equality, ...]] = {}


class Index(NamedTuple):
    """One index of a dataset; `number` tells its table from those of others."""

    number: int
    field: str


class Equality(NamedTuple):
    """A part of a condition that has to be true: a field of the metadata is a constant, or a parameter of the user's.

    Attributes:
        path: The field's names, from the outer to the inner one.
        is_parameter: Whether `text` is the name or number of one, and not the constant.
    """

    path: tuple[str, ...]
    is_parameter: bool
    text: str


def path_of(known: StructOf, field: str) -> tuple[tuple[str, ...], FieldType] | None:
    """Return the names and the type of a field given as ``a.b``, spelled as the column is; None if there is none."""
    found = _named(known, field)
    if found is not None:
        return (found[0],), found[1]
    outer, _, inner = field.partition(".")
    first = _named(known, outer)
    if first is None or not inner or not isinstance(first[1], StructOf):
        return None
    rest = path_of(first[1], inner)
    return None if rest is None else ((first[0], *rest[0]), rest[1])


def may_have(kind: FieldType) -> bool:
    """Tell whether a field of this type may have an index: numbers are found as fast by reading the whole column."""
    return kind == "VARCHAR"


def create(con: duckdb.DuckDBPyConnection, row: DatasetRow, field: str) -> Index:
    """Make the table of an index on a field that there is, from the records that there are."""
    index = Index(1 + max((each.number for each in row.indexes), default=0), field)
    _fill(con, row, index)
    return index


def refit(con: duckdb.DuckDBPyConnection, before: DatasetRow, row: DatasetRow) -> tuple[Index, ...]:
    """Make the tables of indexes whose fields got another type anew; return the dataset's indexes."""
    kept = []
    for each in before.indexes:
        if path_of(before.fields, each.field) == path_of(row.fields, each.field):
            kept.append(each)
            continue
        con.execute(f"DROP TABLE IF EXISTS {_table(row, each)}")
        index = Index(1 + max(other.number for other in (*before.indexes, *kept)), each.field)
        _fill(con, row, index)
        kept.append(index)
    return tuple(kept)


def add(con: duckdb.DuckDBPyConnection, row: DatasetRow, first: int, last: int) -> None:
    """Take up the records of these sequence numbers, which were just inserted or changed."""
    for each in row.indexes:
        value = _value(row, each)
        if value is not None:
            run(
                con,
                f"INSERT INTO {_table(row, each)} SELECT {value}, r.seq FROM {row.table} r "
                f"WHERE r.seq BETWEEN ? AND ? AND {value} IS NOT NULL",
                [first, last],
            )


def take_out(con: duckdb.DuckDBPyConnection, row: DatasetRow, numbers: Sequence[int]) -> None:
    """Forget the records of these sequence numbers, which are about to be deleted or changed."""
    for each in row.indexes:
        if _value(row, each) is not None:
            con.execute(f"DELETE FROM {_table(row, each)} WHERE seq IN (SELECT unnest(?::BIGINT[]))", [list(numbers)])


def drop(con: duckdb.DuckDBPyConnection, row: DatasetRow, index: Index) -> None:
    """Delete the table of an index."""
    con.execute(f"DROP TABLE IF EXISTS {_table(row, index)}")


def candidates(con: duckdb.DuckDBPyConnection, row: DatasetRow, selection: Selection) -> list[int] | None:
    """Return sequence numbers that include those of all records that match, None where no index knows of few."""
    if not row.indexes or selection.where is None:
        return None
    for equality in _equalities(con, selection.where):
        for each in row.indexes:
            place = path_of(row.fields, each.field)
            if place is None or tuple(map(str.casefold, place[0])) != equality.path:
                continue
            literal = _literal(equality, selection.params)
            if literal is not None and may_have(place[1]):
                found = con.execute(f"SELECT seq FROM {_table(row, each)} WHERE value = {literal} LIMIT {MOST + 1}")
                numbers = [number for (number,) in found.fetchall()]
                if len(numbers) <= MOST:
                    return numbers
    return None


def faults(con: duckdb.DuckDBPyConnection, row: DatasetRow) -> list[str]:
    """Say which indexes are not what the records say, or do not lead to them."""
    found = ((each, _fault(con, row, each)) for each in row.indexes)
    return [f"the index on {each.field!r} of dataset {row.name!r} {fault}" for each, fault in found if fault]


def _fault(con: duckdb.DuckDBPyConnection, row: DatasetRow, index: Index) -> str | None:
    value, table = _value(row, index), _table(row, index)
    if value is None:
        return None
    if not con.execute("SELECT 1 FROM duckdb_tables() WHERE schema_name || '.' || table_name = ?", [table]).fetchall():
        return "is missing"
    wanted, there = (
        first(con.execute(f"SELECT count(*), bit_xor(hash(value, seq)) FROM ({entries})")) or (0, None)
        for entries in (
            f"SELECT {value} AS value, r.seq FROM {row.table} r WHERE {value} IS NOT NULL",
            f"SELECT value, seq FROM {table}",
        )
    )
    if wanted != there:
        return f"has {there[0]:,} entries that are not those of {wanted[0]:,} records"
    return _lost_by_key(con, table)


def _lost_by_key(con: duckdb.DuckDBPyConnection, table: str) -> str | None:
    """Look some values up that are rare enough for DuckDB to use the key."""
    upto = "sum(count(*)) OVER (ORDER BY hash(value))"
    rare = f"SELECT value, {upto} AS upto FROM {table} GROUP BY value HAVING count(*) <= {MOST}"
    ((values, wanted),) = con.execute(
        f"SELECT list(value), max(upto) FROM ({rare}) WHERE upto <= {_LOOKED_UP}"
    ).fetchall()
    if not values:
        return None
    found = scalar(con.execute(f"SELECT count(*) FROM {table} WHERE value IN (SELECT unnest(?::VARCHAR[]))", [values]))
    return None if found == wanted else f"leads to {found:,} of {wanted:,} records"


def to_text(indexes: Sequence[Index]) -> str | None:
    """Return the stored form."""
    return json.dumps([list(each) for each in indexes]) if indexes else None


def from_text(text: str | None) -> tuple[Index, ...]:
    """Return the indexes of a stored form.

    Raises:
        IntegrityError: It is none.
    """
    try:
        found = [] if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"the stored list of indexes cannot be read: {error}") from error
    if not isinstance(found, list) or not all(map(_is_index, found)) or len({each[0] for each in found}) < len(found):
        raise IntegrityError(f"the stored list of indexes is {text!r:.200}, which none is written as")
    return tuple(Index(*each) for each in found)


def _fill(con: duckdb.DuckDBPyConnection, row: DatasetRow, index: Index) -> None:
    value = _value(row, index)
    if value is None:  # what the field widened to has no index; should it come again, the table does too
        return
    table = _table(row, index)
    con.execute(f"CREATE TABLE {table} AS SELECT {value} AS value, r.seq FROM {row.table} r WHERE {value} IS NOT NULL")
    con.execute(f"CREATE INDEX {table.rpartition('.')[2]}_key ON {table} (value)")


def _is_index(value: Any) -> bool:
    """Tell whether this, read from a stored form, is an index: its number becomes a part of SQL."""
    if not isinstance(value, list) or len(value) != 2:
        return False
    number, field = value
    return type(number) is int and 0 < number < _MOST_NUMBER and isinstance(field, str) and is_name(field)


def _table(row: DatasetRow, index: Index) -> str:
    return f"tensordb.index_{row.dataset_id}_{index.number}"


def _value(row: DatasetRow, index: Index) -> str | None:
    """Return the field as SQL over the record table, None while its type has no index."""
    place = path_of(row.fields, index.field)
    if place is None or not may_have(place[1]) or sql_type(row.fields) is None:
        return None
    return ".".join(("r.metadata", *map(quoted, place[0])))


def _named(known: StructOf, name: str) -> tuple[str, FieldType] | None:
    typed = columns(known)
    if not isinstance(typed, StructOf):
        return None
    return next(((each, kind) for each, kind in typed.fields.items() if each.casefold() == name.casefold()), None)


def _equalities(con: duckdb.DuckDBPyConnection, where: str) -> tuple[Equality, ...]:
    """Return the equalities that a condition needs to be true, as DuckDB parses it."""
    found = _known.get(where)
    if found is None:
        text = f"SELECT 1 WHERE (\n{where}\n)".replace("'", "''")
        try:
            tree = json.loads(scalar(con.execute(f"SELECT json_serialize_sql('{text}')")))
            found = tuple(_of_tree(tree["statements"][0]["node"]["where_clause"]) if not tree["error"] else ())
        except (duckdb.Error, KeyError, IndexError, TypeError, ValueError):  # the query itself will say what is wrong
            found = ()
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[where] = found
    return found


def _of_tree(node: Any) -> list[Equality]:
    if node["type"] == "CONJUNCTION_AND":
        return [each for child in node["children"] for each in _of_tree(child)]
    if node["type"] != "COMPARE_EQUAL":
        return []
    for column, other in ((node["left"], node["right"]), (node["right"], node["left"])):
        names = tuple(str(each).casefold() for each in column.get("column_names", ()))
        if len(names) < 2 or names[0] != "metadata":
            continue
        if other["class"] == "PARAMETER":
            return [Equality(names[1:], True, str(other["identifier"]))]
        literal = other.get("literal")
        if other["class"] == "CONSTANT" and isinstance(literal, dict) and literal.get("kind") == "STRING":
            return [Equality(names[1:], False, str(literal["text"]))]
    return []


def _literal(equality: Equality, params: Sequence[Any] | Mapping[str, Any] | None) -> str | None:
    """Return the text that a field has to equal as SQL; None where it is something else than text."""
    value: Any = equality.text
    if equality.is_parameter:
        if isinstance(params, Mapping):
            value = params.get(equality.text)
        else:
            number = int(equality.text) if equality.text.isdigit() else 0
            value = params[number - 1] if params is not None and 0 < number <= len(params) else None
    return None if type(value) is not str or "\0" in value else "'" + value.replace("'", "''") + "'"
