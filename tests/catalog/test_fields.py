"""SQL types of metadata fields: inferred, widened, and what values become in their columns."""

import datetime as dt
import functools
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensordb.catalog.arrow import metadata_columns, table_of
from tensordb.catalog.documents import normalize, pack, unpack
from tensordb.catalog.fields import (
    FieldType,
    ListOf,
    StructOf,
    coerce,
    columns,
    from_dict,
    quoted,
    sql_type,
    struct_of,
    to_dict,
    type_of,
    widen,
)
from tensordb.catalog.records import NewRecords
from tensordb.datasets.metadata import MetadataColumn
from tensordb.datasets.schema import DatasetSchema

NAMES = st.sampled_from(["a", "A", "b", "ß", "x y", 'q"'])
SCALAR_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.dates(),
    st.datetimes(timezones=st.sampled_from([None, dt.UTC, dt.timezone(dt.timedelta(hours=9))])),
)
VALUES = st.recursive(
    SCALAR_VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)
DOCUMENTS = st.dictionaries(NAMES, VALUES, max_size=3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([None], "NULL"),
        ([True, None], "BOOLEAN"),
        ([True, 1], "BIGINT"),
        ([1, 1.5], "DOUBLE"),
        ([1.5, False], "DOUBLE"),
        ([2**63 - 1, -(2**63)], "BIGINT"),
        ([2**63], "DOUBLE"),
        (["x"], "VARCHAR"),
        (["x", 1], "VARCHAR"),
        ([dt.date(2024, 1, 1)], "DATE"),
        ([dt.date(2024, 1, 1), dt.datetime(2024, 1, 1)], "TIMESTAMP"),
        ([dt.date(2024, 1, 1), 5], "VARCHAR"),
        ([[1], [2.5], []], ListOf("DOUBLE")),
        ([[], None], ListOf("NULL")),
        ([[1], 1], "VARCHAR"),
        ([{"a": 1}, {"b": "x"}], StructOf({"a": "BIGINT", "b": "VARCHAR"})),
        ([{"a": 1}, {"A": 1.5}], StructOf({"a": "DOUBLE"})),
        ([{"a": {"B": 1, "b": "x"}}], StructOf({"a": StructOf({"B": "VARCHAR"})})),
        ([{"a": 1}, [1]], "VARCHAR"),
        ([{"": 1, "nul\0": 2}], StructOf()),
    ],
)
def test_values_give_the_narrowest_type_that_holds_them(values: list[Any], expected: FieldType) -> None:
    kind: FieldType = "NULL"
    for value in values:
        kind = widen(kind, type_of(value))
    assert kind == expected


@given(left=VALUES, right=VALUES)
def test_widening_is_idempotent_and_its_order_matters_for_spelling_only(left: Any, right: Any) -> None:
    one, other = type_of(left), type_of(right)
    both = widen(one, other)
    assert widen(both, one) == widen(both, other) == widen(both, both) == both
    assert fold(widen(other, one)) == fold(both)


def fold(kind: FieldType) -> Any:
    if isinstance(kind, StructOf):
        return {name.casefold(): fold(inner) for name, inner in kind.fields.items()}
    return [fold(kind.element)] if isinstance(kind, ListOf) else kind


def comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: comparable(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [comparable(inner) for inner in value]
    return "not a number" if value != value else value


def merge(documents: list[dict[str, Any]]) -> StructOf:
    merged = functools.reduce(widen, map(struct_of, documents), StructOf())
    assert isinstance(merged, StructOf)
    return merged


@given(documents=st.lists(DOCUMENTS, max_size=4))
def test_the_type_of_many_documents_is_the_widened_type_of_each(documents: list[dict[str, Any]]) -> None:
    # Some without None, as flat documents alone are looked at column by column.
    column = MetadataColumn([None, *documents, {}, *documents], DatasetSchema())
    column.take(1)
    column.take(len(documents))
    column.finish(2 * len(documents) + 2)
    assert fold(column.fields) == fold(merge(documents))
    assert comparable([unpack(packed) for packed in column.packed[1:]]) == comparable([*documents, {}, *documents])


@given(value=VALUES)
def test_types_survive_their_json_form(value: Any) -> None:
    assert from_dict(to_dict(type_of(value))) == type_of(value)


@settings(max_examples=60, deadline=None)
@given(documents=st.lists(DOCUMENTS, min_size=2, max_size=4))
def test_duckdb_gets_the_same_columns_from_one_record_and_from_many(documents: list[dict[str, Any]]) -> None:
    merged = merge(documents)
    kind, sql = columns(merged), sql_type(merged)
    assert (kind is None) == (sql is None)
    if not isinstance(kind, StructOf):
        return
    zeros = np.zeros(len(documents), np.int64)
    new = NewRecords(0, None, zeros.view("V8"), zeros, zeros, [documents], list(map(pack, documents)))
    with duckdb.connect() as con:
        con.execute("SET TimeZone='UTC'")
        con.execute(f"CREATE TABLE t (metadata {sql})")
        for document in documents:
            con.execute(f"INSERT INTO t VALUES (?::{sql})", [coerce(document or None, kind)])
        con.register("incoming", table_of(new, kind))
        con.execute("INSERT INTO t SELECT metadata FROM incoming")
        con.unregister("incoming")
        rows = con.execute("SELECT metadata FROM t ORDER BY rowid").fetchall()
    assert repr(rows[: len(documents)]) == repr(rows[len(documents) :])


def test_values_become_what_their_widened_column_holds() -> None:
    moment = dt.datetime(2024, 1, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    for value, kind, expected in (
        (1, "DOUBLE", 1.0),
        (True, "BIGINT", 1),
        (2**2000, "DOUBLE", float("inf")),
        (-(2**2000), "DOUBLE", float("-inf")),
        (5, "VARCHAR", "5"),
        (True, "VARCHAR", "true"),
        ([1, "x"], "VARCHAR", '[1, "x"]'),
        ("x", "VARCHAR", "x"),
        (dt.date(2024, 1, 1), "TIMESTAMP", dt.datetime(2024, 1, 1)),
        (dt.date(2024, 1, 1), "VARCHAR", "2024-01-01"),
        (moment, "TIMESTAMP", dt.datetime(2024, 1, 1, 10)),
        (moment, "VARCHAR", "2024-01-01 10:00:00"),
        (None, "BIGINT", None),
        ({"A": 1}, StructOf({"a": "DOUBLE", "b": "VARCHAR"}), {"a": 1.0, "b": None}),
    ):
        coerced = coerce(value, kind)  # type: ignore[arg-type]
        assert coerced == expected
        assert type(coerced) is type(expected)


def test_scalars_become_the_same_text_before_and_after_their_column_was_widened() -> None:
    with duckdb.connect() as con:
        con.execute("SET TimeZone='UTC'")
        for value in (5, -7, True, False, 2.5, 0.1, dt.date(2024, 1, 1), dt.datetime(2024, 1, 1, 12, 30)):
            kind = type_of(value)
            widened = con.execute(f"SELECT (?::{sql_type(kind)})::VARCHAR", [value]).fetchall()[0][0]
            assert coerce(value, "VARCHAR") == widened


def test_quoted_names_cannot_leave_their_quotes() -> None:
    assert quoted('a"; DROP TABLE x; --') == '"a""; DROP TABLE x; --"'


@given(documents=st.lists(st.dictionaries(st.sampled_from("aAbc"), VALUES, max_size=3), min_size=2, max_size=12))
def test_documents_taken_column_by_column_give_the_same_columns(documents: list[dict[str, Any]]) -> None:
    column = MetadataColumn([*documents, *documents], DatasetSchema())
    column.take(len(documents))
    column.finish(2 * len(documents))
    kind = columns(column.fields)
    flat = metadata_columns(column.documents, column.packed, kind)
    plain = metadata_columns([[normalize(each) for each in [*documents, *documents]]], column.packed, kind)
    assert comparable(flat.packed.to_pylist()) == comparable(plain.packed.to_pylist())
    left, right = (None if each.typed is None else each.typed.to_pylist() for each in (flat, plain))
    assert comparable(left) == comparable(right)
