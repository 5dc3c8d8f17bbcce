"""sql(): read-only SQL over every dataset."""

import contextlib
import datetime as dt
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from tensordb import InvalidInputError, InvalidQueryError, TensorDBError, TensorStorage


def test_a_dataset_is_a_view_with_one_row_a_record(runs: TensorStorage) -> None:
    table = runs.sql("SELECT * FROM data ORDER BY metadata.step")
    assert isinstance(table, pa.Table)
    assert table.column_names == ["record_id", "created_at", "dtype", "shape", "nbytes", "metadata", "stats"]
    first = table.slice(0, 1).to_pylist()[0]
    created = first.pop("created_at")
    assert first.pop("stats")["norm"] == 0.0
    assert first == {
        "record_id": "r0",
        "dtype": "float32",
        "shape": [4],
        "nbytes": 16,
        "metadata": {"step": 0, "loss": 1.0, "tag": "even"},
    }
    assert abs(created - dt.datetime.now(dt.UTC).replace(tzinfo=None)) < dt.timedelta(minutes=5)
    assert table.num_rows == 10


def test_aggregates_joins_and_set_operations_across_datasets(runs: TensorStorage) -> None:
    runs.create_dataset("labels")
    runs.insert_many("labels", torch.zeros(10, 1), [{"step": n, "label": "ab"[n > 4]} for n in range(10)])
    runs.create_dataset("bare")
    runs.insert("bare", torch.zeros(1))
    joined = runs.sql("""
        SELECT l.metadata.label AS label, count(*) AS n, avg(d.metadata.loss) AS loss
        FROM data d JOIN labels l ON d.metadata.step = l.metadata.step GROUP BY ALL ORDER BY label""")
    assert joined.column("label").to_pylist() == ["a", "b"]
    assert joined.column("n").to_pylist() == [5, 5]
    assert joined.column("loss").to_pylist() == pytest.approx([0.8, 0.3])
    union = (
        "SELECT record_id FROM data UNION ALL SELECT record_id FROM labels UNION ALL FROM (SELECT record_id FROM bare)"
    )
    assert runs.sql(f"SELECT count(*) AS n FROM ({union})").column("n").to_pylist() == [21]
    assert runs.sql("SELECT metadata FROM bare").column("metadata").to_pylist() == [None]


def test_views_follow_changes_of_records_and_fields(data: TensorStorage) -> None:
    assert data.sql("SELECT * FROM data").num_rows == 0
    data.insert("data", torch.zeros(1), {"a": 1}, record_id="x")
    assert data.sql("SELECT metadata.a AS a FROM data").column("a").to_pylist() == [1]
    data.insert("data", torch.zeros(1), {"a": 1.5, "b": {"c": "t"}})
    assert data.sql("SELECT metadata.a AS a FROM data ORDER BY a").column("a").to_pylist() == [1.0, 1.5]
    assert data.sql("SELECT metadata.b.c AS c FROM data WHERE metadata.b IS NOT NULL").column("c").to_pylist() == ["t"]
    data.delete_tensor("data", "x")
    assert data.sql("FROM data").num_rows == 1


def test_params_of_both_kinds_and_order(runs: TensorStorage) -> None:
    for query, params in (
        ("SELECT record_id FROM data WHERE metadata.step >= ? ORDER BY metadata.loss LIMIT 2", [3]),
        ("SELECT record_id FROM data WHERE metadata.step >= $low ORDER BY metadata.loss LIMIT 2;", {"low": 3}),
        ("-- newest\nSELECT record_id FROM data ORDER BY metadata.loss LIMIT 2 -- done", None),
    ):
        assert runs.sql(query, params).column("record_id").to_pylist() == ["r9", "r8"]
        with runs.transaction():
            assert runs.sql(query, params).column("record_id").to_pylist() == ["r9", "r8"]


def test_other_statements_that_read(runs: TensorStorage) -> None:
    def read_all() -> None:
        assert runs.sql("SHOW TABLES").column("name").to_pylist() == ["data"]
        assert runs.sql("DESCRIBE data").num_rows == 7
        assert runs.sql("SUMMARIZE data").num_rows == 7
        assert runs.sql("VALUES (1), (2)").num_rows == 2
        assert runs.sql("WITH x AS (SELECT 1 AS n) SELECT n FROM x").num_rows == 1
        assert runs.sql("PIVOT (SELECT metadata.tag AS tag FROM data) ON tag USING count(*)").to_pylist() == [
            {"even": 5, "odd": 5}
        ]
        for query in ("EXPLAIN SELECT * FROM data", "explain analyze FROM data", "EXPLAIN (FORMAT json) SELECT 1"):
            assert runs.sql(query).num_rows == 1

    read_all()
    with runs.transaction():
        read_all()


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in_a_transaction"])
def test_nothing_can_be_changed_or_written_in_any_disguise(runs: TensorStorage, tmp_path: Path, inside: bool) -> None:
    target = tmp_path / "out.csv"
    runs.delete_tensor("data", "r9")
    for query in (
        "DELETE FROM tensordb.objects",
        "INSERT INTO tensordb.info VALUES ('a', 'b')",
        "UPDATE tensordb.info SET value = 'x'",
        "CREATE TABLE hacked (i INT)",
        "CREATE TEMP TABLE hacked AS SELECT 1",
        "CREATE OR REPLACE VIEW data AS SELECT 1",
        "CREATE TABLE hacked AS PIVOT data ON dtype",
        "DROP VIEW data",
        "ALTER TABLE tensordb.info RENAME TO other",
        "TRUNCATE tensordb.info",
        "MERGE INTO tensordb.info USING (SELECT 1) ON false WHEN NOT MATCHED THEN INSERT VALUES ('a', 'b')",
        "WITH gone AS (DELETE FROM tensordb.objects RETURNING 1) SELECT * FROM gone",
        "WITH x AS (SELECT 1) DELETE FROM tensordb.objects",
        "SELECT * FROM (DELETE FROM tensordb.objects RETURNING 1)",
        "SELECT 1; DELETE FROM tensordb.objects",
        "DELETE FROM tensordb.objects; SELECT 1",
        "SELECT 1) t; DELETE FROM tensordb.objects; SELECT * FROM (SELECT 1",
        "/* SELECT */ DELETE FROM tensordb.objects",
        "EXPLAIN ANALYZE DELETE FROM tensordb.objects",
        "explain\tanalyze/**/delete from tensordb.objects",
        "EXPLAIN EXPLAIN ANALYZE DELETE FROM tensordb.objects",
        "/* why */ EXPLAIN ANALYZE DELETE FROM tensordb.objects",
        "-- why\nEXPLAIN ANALYZE DELETE FROM tensordb.objects",
        "/* /* */ EXPLAIN SELECT 1 -- */ EXPLAIN ANALYZE DELETE FROM tensordb.objects",
        f"EXPLAIN ANALYZE COPY (SELECT 1) TO '{target}'",
        f"EXPLAIN /**/ ANALYZE COPY (SELECT 1) TO '{target}'",
        f"COPY (SELECT 1) TO '{target}'",
        f"COPY (PIVOT data ON dtype USING count(*)) TO '{target}'",
        f"EXPLAIN ANALYZE COPY (PIVOT data ON dtype USING count(*)) TO '{target}'",
        f"COPY data FROM '{target}'",
        f"EXPORT DATABASE '{target}'",
        f"ATTACH '{target}' AS other",
        "DETACH memory",
        "PRAGMA enable_profiling",
        "SET threads = 1",
        "RESET threads",
        "USE main",
        "CALL force_checkpoint()",
        "CHECKPOINT",
        "VACUUM",
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "PREPARE p AS DELETE FROM tensordb.objects",
        "EXECUTE p",
        "LOAD json",
        "INSTALL json",
        "SELECT * FROM query('DELETE FROM tensordb.objects')",
        "SELECT * FROM enable_profiling()",
        f"FROM ENABLE_LOGGING (storage = 'file', storage_path = '{target}')",
        f"SELECT (SELECT count(*) FROM \"enable_profiling\"(format = 'json', save_location = '{target}'))",
        "SELECT * FROM query('SELECT * FROM disable_profiling()')",
        "EXPLAIN ANALYZE SELECT * FROM enable_logging()",
    ):
        with pytest.raises(TensorDBError), runs.transaction() if inside else contextlib.nullcontext():
            runs.sql(query)
        assert not target.exists(), query
    assert runs.count("data") == 9
    assert runs.sql("SHOW TABLES").column("name").to_pylist() == ["data"]
    assert runs.verify().ok
    assert runs.insert("data", torch.zeros(4), {"step": 1})


def test_no_query_changes_the_settings_of_what_follows(runs: TensorStorage) -> None:
    def settings() -> list[dict[str, object]]:
        return runs.sql("SELECT name, value FROM duckdb_settings() ORDER BY name").to_pylist()

    before = settings()
    for condition in ("EXISTS (FROM enable_profiling())", "(SELECT count(*) FROM enable_logging()) = 0"):
        with pytest.raises(InvalidQueryError, match=r"enable_\w+\(\), which changes the connection"):
            runs.query("data", condition)
        with pytest.raises(InvalidQueryError, match="only read"):
            runs.query("data", order_by=condition)
        with pytest.raises(InvalidQueryError, match="only read"):
            runs.weights.list_weights(where=condition)
    assert settings() == before
    assert runs.sql("SELECT 'to enable_profiling, call' AS enable_logging").num_rows == 1


def test_bad_statements_are_errors_that_say_why(runs: TensorStorage) -> None:
    for query, named in (
        ("SELECT", "SELECT"),
        ("SELECT * FROM nope", "nope"),
        ("SELECT nope FROM data", "nope"),
        ("SELECT metadata.nope FROM data", "nope"),
        ("SELECT 'a'::INT", "a"),
        ("SELECT ?", "SELECT"),
    ):
        with pytest.raises(InvalidQueryError, match=named):
            runs.sql(query)
    for query in ("", "  ", "-- nothing", 5, None, "SELECT '\ud800'"):
        with pytest.raises(InvalidInputError):
            runs.sql(query)  # type: ignore[arg-type]
    assert runs.sql("SELECT 1 AS one").to_pylist() == [{"one": 1}]


def test_odd_dataset_names_are_quoted_names_in_sql(db: TensorStorage) -> None:
    for name in ('a"b', "select", "a.b", "x; DROP TABLE y", "../x", "ü🙂", "two words", "tensordb", "main"):
        db.create_dataset(name)
        db.insert(name, torch.zeros(1), {"a": 1})
        quoted = '"' + name.replace('"', '""') + '"'
        assert db.sql(f"SELECT metadata.a AS a FROM {quoted}").column("a").to_pylist() == [1]
        db.delete_dataset(name)
    assert db.sql("SHOW TABLES").num_rows == 0
