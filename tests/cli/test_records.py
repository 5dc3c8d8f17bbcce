"""head and query on a real database."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import Run


def strict_json(text: str) -> Any:
    """Parse JSON as strict parsers do: Python's own would take NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def ids(text: str) -> list[str]:
    return [each["record_id"] for each in strict_json(text)]


def test_head_shows_the_first_records_with_metadata_and_a_summary(run: Run, folder: Path) -> None:
    code, out, err = run("head", folder, "weights", "-n", 2)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["record_id", "w0", "w1"]
    assert "float32[64, 64]" in lines[1]
    assert "epoch=0 loss=nan" in lines[1]
    assert max(map(len, lines)) <= 100


def test_head_as_json_is_strict_json_with_nan_as_null_and_dates_in_iso(run: Run, folder: Path) -> None:
    first = strict_json(run("head", folder, "weights", "-n", 1, "--json").out)[0]
    assert first["metadata"] == {
        "epoch": 0,
        "loss": None,
        "at": "2024-05-01T12:00:00+00:00",
        "lr": {"base": 0.1},
        "tags": ["a", None],
    }
    assert (first["dtype"], first["shape"], first["nbytes"]) == ("float32", [64, 64], 16384)
    assert first["values"]["min"] < -3 < 3 < first["values"]["max"]
    assert first["encoding"]["compression"] == "planes+zstd"
    assert first["created_at"].endswith("+00:00")


def test_values_that_are_not_finite_are_counted_apart(run: Run, folder: Path) -> None:
    found = strict_json(run("head", folder, 'evil\x1b[31m"name', "--json").out)[0]
    assert found["values"] == {"min": 1.0, "max": 1.0, "mean": 1.0, "non_finite": 2}
    assert found["metadata"] == {"note": "two\nlines\x07"}
    table = run("head", folder, 'evil\x1b[31m"name').out
    assert "2 not finite" in table
    assert "two\\nlines\\x07" in table


def test_head_of_an_empty_dataset_says_so(run: Run, folder: Path) -> None:
    assert run("head", folder, "empty").out == "no records\n"
    assert run("head", folder, "empty", "--json").out == "[]\n"


def test_query_takes_a_condition_an_order_and_a_limit(run: Run, folder: Path) -> None:
    code, out, err = run(
        "query", folder, "weights", "metadata.loss < 0.9", "--order-by", "metadata.loss", "--limit", 2, "--json"
    )
    assert (code, err) == (0, "")
    assert ids(out) == ["w4", "w3"]


def test_query_takes_options_between_dataset_and_condition(run: Run, folder: Path) -> None:
    assert ids(run("query", folder, "weights", "--json", "metadata.epoch = 3").out) == ["w3"]
    assert ids(run("query", "--json", folder, "weights", "--limit", 1, "metadata.epoch > 1").out) == ["w2"]


def test_query_without_a_condition_gives_every_record(run: Run, folder: Path) -> None:
    assert ids(run("query", folder, "weights", "--json").out) == [f"w{epoch}" for epoch in range(5)]


@pytest.mark.parametrize(
    ("condition", "params"),
    [("metadata.epoch IN (?, ?)", "[1, 2]"), ("metadata.epoch BETWEEN $low AND $high", '{"low": 1, "high": 2}')],
)
def test_params_bind_values_by_position_and_by_name(run: Run, folder: Path, condition: str, params: str) -> None:
    assert ids(run("query", folder, "weights", condition, "--params", params, "--json").out) == ["w1", "w2"]


@pytest.mark.parametrize("condition", ["metadata.lss < 1", "metadata.loss <", "1; DROP TABLE x", "metadata.epoch = ?"])
def test_a_bad_condition_is_2_and_one_line_that_names_it(run: Run, folder: Path, condition: str) -> None:
    code, out, err = run("query", folder, "weights", condition)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("tensordb: ")
    assert condition in err


def test_sql_prints_its_result_as_a_table(run: Run, folder: Path) -> None:
    sql = "SELECT dtype, count(*) AS n, sum(nbytes) AS raw, max(metadata.at) AS last FROM weights GROUP BY dtype"
    code, out, err = run("query", folder, "--sql", sql)
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["dtype", "n", "raw", "last"],
        ["float32", "5", "81920", "2024-05-01", "12:04:00"],
    ]


def test_sql_as_json_has_plain_values_and_every_column(run: Run, folder: Path) -> None:
    sql = """SELECT count(*) AS n, sum(nbytes) AS raw, min(metadata.at) AS first, avg(metadata.loss) AS loss,
        'ab'::BLOB AS raw, 1.5::DECIMAL(4, 1) AS exact, NULL AS nothing, [1, 2] AS list FROM weights"""
    assert strict_json(run("query", folder, "--sql", sql, "--json").out) == [
        {
            "n": 5,
            "raw": 81920,
            "first": "2024-05-01T12:00:00",
            "loss": None,
            "raw_1": "YWI=",
            "exact": 1.5,
            "nothing": None,
            "list": [1, 2],
        }
    ]


def test_sql_takes_params_and_joins_datasets(run: Run, folder: Path) -> None:
    sql = "SELECT a.record_id FROM weights a LEFT JOIN empty b USING (record_id) WHERE a.metadata.epoch = ?"
    assert ids(run("query", folder, "--sql", sql, "--params", "[4]", "--json").out) == ["w4"]


@pytest.mark.parametrize(
    "sql", ["DELETE FROM weights", "SELECT 1; SELECT 2", "SELECT nope FROM weights", "CREATE TABLE t (a INT)"]
)
def test_sql_that_writes_or_is_wrong_is_2(run: Run, folder: Path, sql: str) -> None:
    code, out, err = run("query", folder, "--sql", sql)
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_sql_without_rows_is_an_empty_table(run: Run, folder: Path) -> None:
    assert run("query", folder, "--sql", "SELECT record_id FROM empty").out == "record_id\n"
    assert run("query", folder, "--sql", "SELECT record_id FROM empty", "--json").out == "[]\n"


@pytest.mark.parametrize(
    "value", ["TIMESTAMP 'infinity'", "DATE '-infinity'", "[TIMESTAMP '0044-03-15 (BC) 12:00:00']"]
)
def test_a_date_that_python_lacks_is_2_and_the_error_says_what_to_do(run: Run, folder: Path, value: str) -> None:
    done = run("query", folder, "--sql", f"SELECT 1 AS one, {value} AS then", "--json")
    assert (done.code, done.out) == (2, "")
    assert "column 'then' has" in done.err
    assert "cast it to VARCHAR" in done.err
