"""query: SQL conditions over typed metadata, or a function."""

import datetime as dt
import math

import pytest
import torch

from tensordb import DatasetNotFoundError, InvalidInputError, InvalidQueryError, TensorStorage


def steps(db: TensorStorage, where: object = None, **options: object) -> list[int]:
    return [record.metadata["step"] for record in db.query("data", where, **options)]  # type: ignore[arg-type]


def names(db: TensorStorage, where: str, **options: object) -> str:
    return "".join(record.id for record in db.query("data", where, **options))  # type: ignore[arg-type]


def put(db: TensorStorage, **metadata: object) -> None:
    """Insert one record a keyword: its id is the keyword, its field `v` the value."""
    for record_id, value in metadata.items():
        db.insert("data", torch.zeros(2), {} if value is ... else {"v": value}, record_id=record_id)


def test_conditions_over_every_column(runs: TensorStorage) -> None:
    assert steps(runs, "metadata.loss < 0.45") == [6, 7, 8, 9]
    assert steps(runs, "metadata.step BETWEEN 2 AND 4 AND metadata.tag = 'even'") == [2, 4]
    assert steps(runs, "record_id IN ('r1', 'r7')") == [1, 7]
    assert steps(runs, "dtype = 'float32' AND shape = [4] AND shape[1] = 4 AND len(shape) = 1 AND nbytes = 16") == [
        *range(10)
    ]
    assert steps(runs, "created_at > now()::TIMESTAMP + INTERVAL 1 HOUR") == []
    assert steps(runs, "created_at <= now()") == [*range(10)]
    assert steps(runs) == steps(runs, "true") == [*range(10)]
    assert runs.query("data", "metadata.step = 3")[0].tensor.tolist() == [3.0] * 4


def test_order_and_limit(runs: TensorStorage) -> None:
    assert steps(runs, order_by="metadata.loss") == [*range(9, -1, -1)]
    assert steps(runs, order_by="metadata.tag DESC, metadata.step DESC") == [9, 7, 5, 3, 1, 8, 6, 4, 2, 0]
    assert steps(runs, order_by="metadata.tag") == [0, 2, 4, 6, 8, 1, 3, 5, 7, 9], "ties stay in insertion order"
    assert steps(runs, "metadata.step > 2", order_by="metadata.loss", limit=2) == [9, 8]
    assert steps(runs, limit=3) == [0, 1, 2]
    assert steps(runs, limit=0) == []
    assert steps(runs, limit=99) == [*range(10)]
    for limit in (-1, 1.5, "3", True):
        with pytest.raises(InvalidInputError, match="limit"):
            runs.query("data", limit=limit)  # type: ignore[arg-type]


def test_params_of_both_kinds(runs: TensorStorage) -> None:
    assert steps(runs, "metadata.step >= ? AND metadata.tag = ?", params=[5, "odd"]) == [5, 7, 9]
    assert steps(runs, "metadata.step = $step OR metadata.tag = $tag", params={"step": 4, "tag": "x"}) == [4]
    assert steps(runs, "metadata.tag = ?", params=["' OR true --"]) == []
    assert steps(runs, "list_contains($wanted, metadata.step)", params={"wanted": [1, 2]}) == [1, 2]
    assert steps(runs, order_by="metadata.step = ? DESC", params=[5], limit=1) == [5]
    assert runs.count("data", "metadata.step > ?", params=(6,)) == 3
    for where, params in (("metadata.step = ?", []), ("metadata.step = ?", [1, 2]), ("metadata.step = $a", {"b": 1})):
        with pytest.raises(InvalidInputError):
            runs.query("data", where, params=params)  # type: ignore[arg-type]
    for params in ("text", 5, b"x"):
        with pytest.raises(InvalidInputError, match="params"):
            runs.query("data", "metadata.step = ?", params=params)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="params"):
        runs.query("data", params=[1])


def test_ints_and_floats_compare_as_numbers_whatever_was_inserted_first(data: TensorStorage) -> None:
    put(data, a=1, b=1.5, c=2, d=10, e=-0.5, f=9.99, g=True)
    assert names(data, "metadata.v < 5") == "abceg"
    assert names(data, "metadata.v < 5.0") == "abceg"
    assert names(data, "metadata.v = 1") == "ag"
    assert names(data, "metadata.v >= ?", params=[10]) == "d"
    assert names(data, "metadata.v >= ?", params=[9.99]) == "df"
    assert names(data, "metadata.v BETWEEN 1 AND 2", order_by="metadata.v DESC") in ("cbag", "cbga")
    values = [record.metadata["v"] for record in data.query("data")]
    assert values == [1, 1.5, 2, 10, -0.5, 9.99, True]
    assert [type(value) for value in values] == [int, float, int, int, float, float, bool]


def test_text_compares_as_text(data: TensorStorage) -> None:
    put(data, a="a3", b="10", c="9", d="ünï", e="it's", f="")
    assert names(data, "metadata.v = 'a3'") == "a"
    assert names(data, "metadata.v < '9'") == "bf"
    assert names(data, "metadata.v = ?", params=["it's"]) == "e"
    assert names(data, "metadata.v LIKE '%n_'") == "d"
    assert names(data, "metadata.v = ''") == "f"


def test_a_field_that_becomes_text_keeps_its_older_values_findable(data: TensorStorage) -> None:
    moment = dt.datetime(2024, 5, 1, 12)
    put(data, a=5, b=True, c="five", d=5, e=2.5)
    assert names(data, "metadata.v = '5'") == "ad"
    assert names(data, "metadata.v = 'five'") == "c"
    assert names(data, "metadata.v = '2.5'") == "e"
    data.insert("data", torch.zeros(1), {"when": moment}, record_id="x")
    data.insert("data", torch.zeros(1), {"when": "soon"}, record_id="y")
    data.insert("data", torch.zeros(1), {"when": moment}, record_id="z")
    assert names(data, "metadata.\"when\" = '2024-05-01 12:00:00'") == "xz"
    assert data.get_tensor_by_id("data", "x").metadata == {"when": moment}


def test_a_missing_field_is_null(data: TensorStorage) -> None:
    put(data, a=1, b=None, c=..., d=3)
    assert names(data, "metadata.v IS NULL") == "bc"
    assert names(data, "metadata.v > 0") == "ad"
    assert names(data, "NOT metadata.v > 2") == "a"
    assert names(data, "coalesce(metadata.v, 9) > 2") == "bcd"
    data.insert("data", torch.zeros(1), None, record_id="e")
    assert names(data, "metadata.v IS NULL") == "bce"
    assert data.get_tensor_by_id("data", "b").metadata == {"v": None}
    assert data.get_tensor_by_id("data", "c").metadata == {}


def test_nested_fields_and_lists(data: TensorStorage) -> None:
    put(data, a={"opt": {"lr": 1}}, b={"opt": {"lr": 0.5, "name": "sgd"}}, c={"opt": {}}, d={}, e=None)
    assert names(data, "metadata.v.opt.lr < 0.9") == "b"
    assert names(data, "metadata.v.opt.lr >= 1") == "a"
    assert names(data, "metadata.v.opt.name = 'sgd'") == "b"
    assert names(data, "metadata.v.opt.lr IS NULL") == "cde"
    data.insert("data", torch.zeros(1), {"tags": ["x", "y"], "boxes": [{"w": 1}, {"w": 2.5, "h": 3}]}, record_id="f")
    data.insert("data", torch.zeros(1), {"tags": [], "boxes": [{"h": 7}]}, record_id="g")
    assert names(data, "list_contains(metadata.tags, 'x')") == "f"
    assert names(data, "len(metadata.tags) = 0") == "g"
    assert names(data, "metadata.boxes[2].w = 2.5") == "f"
    assert names(data, "metadata.boxes[1].h = 7") == "g"
    assert data.get_tensor_by_id("data", "f").metadata["boxes"] == [{"w": 1}, {"w": 2.5, "h": 3}]


def test_times_compare_as_times_and_zones_are_respected(data: TensorStorage) -> None:
    zone = dt.timezone(dt.timedelta(hours=5))
    put(
        data,
        a=dt.date(2024, 1, 1),
        b=dt.datetime(2024, 1, 1, 12),
        c=dt.datetime(2024, 1, 1, 12, tzinfo=zone),
        d=dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC),
    )
    assert names(data, "metadata.v < '2024-01-01 12:00:00'") == "ac"
    assert names(data, "metadata.v = TIMESTAMP '2024-01-01 07:00:00'") == "c"
    assert names(data, "metadata.v >= ?", params=[dt.datetime(2024, 1, 1, 12)]) == "bd"
    assert data.get_tensor_by_id("data", "c").metadata["v"].utcoffset() == dt.timedelta(hours=5)
    assert type(data.get_tensor_by_id("data", "a").metadata["v"]) is dt.date


def test_special_numbers(data: TensorStorage) -> None:
    put(data, a=math.nan, b=math.inf, c=-math.inf, d=2**70, e=-(2**70), f=2**63 - 1, g=-(2**63), h=1e300)
    assert names(data, "metadata.v > 1e20", order_by="record_id") in ("abdh", "bdh")
    assert names(data, "metadata.v < 0") == "ceg"
    assert names(data, "isnan(metadata.v)") == "a"
    assert data.get_tensor_by_id("data", "d").metadata == {"v": 2**70}
    assert data.get_tensor_by_id("data", "f").metadata == {"v": 2**63 - 1}
    assert math.isnan(data.get_tensor_by_id("data", "a").metadata["v"])


def test_odd_field_names(data: TensorStorage) -> None:
    odd = {"a b": 1, 'quo"te': 2, "a.b": 3, "x; DROP TABLE y": 4, "ü🙂": 5, "select": 6, "y" * 300: 7, "record_id": 8}
    data.insert("data", torch.zeros(1), odd)
    data.insert("data", torch.zeros(1), {**odd, "": "empty", "nul\0": "nul"})
    for name, value in odd.items():
        quoted = '"' + name.replace('"', '""') + '"'
        assert data.count("data", f"metadata.{quoted} = {value}") == 2
    assert data.query("data")[1].metadata == {**odd, "": "empty", "nul\0": "nul"}


def test_field_names_that_differ_by_case_are_kept_apart_in_what_is_returned(data: TensorStorage) -> None:
    documents = [{"Loss": 1}, {"loss": 2}, {"LOSS": 3, "loss": 4}, {"n": {"A": 1, "a": "x"}}, {"n": {"a": 5}}]
    for document in documents:
        data.insert("data", torch.zeros(1), document)
    assert [record.metadata for record in data.query("data")] == documents
    assert data.count("data", "metadata.loss >= 2") == 2


def test_an_unknown_field_or_a_bad_condition_is_an_error_that_names_it(runs: TensorStorage) -> None:
    for where, named in (
        ("metadata.los < 1", "los"),
        ("nope = 1", "nope"),
        ("metadata.loss <", "metadata.loss <"),
        ("metadata.loss < 'abc'", "abc"),
        ("frobnicate(1)", "frobnicate"),
        ("metadata.tag::INT = 1", "metadata.tag"),
        ("(", r"\("),
        ("/* open", "open"),
        ("'open", "open"),
        ("count(*) > 1", "count"),
        ("error('mine')", "mine"),
    ):
        for call in (runs.query, runs.count, runs.delete_where, lambda name, where: list(runs.scan(name, where))):
            with pytest.raises(InvalidQueryError, match=named):
                call("data", where)
    with pytest.raises(InvalidQueryError, match="step, loss, tag"):
        runs.query("data", "metadata.los < 1")
    with pytest.raises(InvalidQueryError, match="nope"):
        runs.query("data", order_by="nope")
    for where in ("", "  ", 5, b"true", "\ud800"):
        with pytest.raises(InvalidInputError):
            runs.query("data", where)  # type: ignore[arg-type]
    with pytest.raises(DatasetNotFoundError):
        runs.query("other", "true")
    assert runs.count("data") == 10


def test_a_field_of_a_dataset_without_metadata_is_an_error_that_names_it(data: TensorStorage) -> None:
    for _ in range(2):
        with pytest.raises(InvalidQueryError, match="loss"):
            data.query("data", "metadata.loss < 1")
        data.insert("data", torch.zeros(1))
    data.create_dataset("declared", {"metadata": {"loss": "float?"}})
    assert data.query("declared", "metadata.loss < 1") == []


@pytest.mark.parametrize("column", ["where", "order_by"])
def test_sql_text_can_change_nothing(runs: TensorStorage, column: str) -> None:
    for text in (
        "true; DROP TABLE tensordb.objects; --",
        "1; DROP TABLE tensordb.objects; --",
        "true); DELETE FROM tensordb.datasets; SELECT * FROM (SELECT 1 WHERE (true",
        "true) ORDER BY 1; CREATE TABLE main.hacked (i INT); SELECT (true",
        "1; COMMIT; DELETE FROM tensordb.info; --",
        "(DELETE FROM tensordb.objects RETURNING 1)",
        "EXISTS (WITH gone AS (DELETE FROM tensordb.objects RETURNING 1) SELECT 1 FROM gone)",
        "true) --",
        "true) /*",
        "true; ATTACH '/nowhere/x.db'",
    ):
        for call in (runs.query, lambda name, **sql: list(runs.scan(name, **sql)), runs.get_records_paginated):
            with pytest.raises(InvalidInputError):
                call("data", **{column: text})
        if column == "where":
            with pytest.raises(InvalidInputError):
                runs.delete_where("data", text)
            with pytest.raises(InvalidInputError):
                runs.count("data", text)
    assert steps(runs) == [*range(10)]
    assert runs.sql("SHOW TABLES").column("name").to_pylist() == ["data"]
    assert runs.verify().ok


def test_semicolons_and_comments_inside_a_condition_are_fine(runs: TensorStorage) -> None:
    assert steps(runs, "metadata.tag = 'a;b' OR metadata.step = 1 -- that's it") == [1]
    assert steps(runs, "metadata.step = /* ; */ 2", order_by="metadata.step -- down") == [2]
