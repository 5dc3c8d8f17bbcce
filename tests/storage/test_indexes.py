"""create_index: the same answers, found faster, whatever happens to records and fields."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tensordb import AlreadyExistsError, InvalidInputError, InvalidQueryError, NotFoundError, TensorStorage
from tests.faults.programs import in_another_process

CONDITIONS: list[tuple[str, Any]] = [
    ("metadata.tag = 'k7'", None),
    ("metadata.tag = ?", ["k7"]),
    ("metadata.tag = $tag AND metadata.n > 3", {"tag": "k7"}),
    ("'k7' = METADATA.\"Tag\" -- a comment", None),
    ("metadata.tag = 'k7' OR metadata.n = 3", None),
    ("NOT metadata.tag = 'k7'", None),
    ("metadata.tag = 'k7' AND metadata.tag = 'k8'", None),
    ("(metadata.n = 7 AND metadata.tag = 'k7')", None),
    ("metadata.n = ?", [7]),
    ("metadata.n = ?", [7.0]),
    ("metadata.n = -7", None),
    ("metadata.n = 7.5", None),
    ("metadata.n BETWEEN 7 AND 9", None),
    ("metadata.n IN (7, 8)", None),
    ("metadata.tag = 'it''s'", None),
    ("metadata.tag = NULL", None),
    ("metadata.tag IS NULL", None),
    ("metadata.deep.x = 1.5 AND dtype = 'float32'", None),
    ("metadata.deep.name = 'm3' AND dtype = 'float32' AND metadata.tag = 'k3'", None),
    ("metadata.deep.name = $1", ["m3"]),
    ("metadata.deep.x = ?", [float("nan")]),
    ("metadata.tag = 'everywhere'", None),
    ("metadata.tag = 'k7') OR (metadata.n = 3", None),
]


@pytest.fixture
def indexed(data: TensorStorage) -> TensorStorage:
    """`data` with 300 records, and indexes on two fields of text."""
    documents = [
        {
            "tag": ["it's", "everywhere", None][n % 3] if n > 200 else f"k{n % 50}",
            "n": n % 40,
            "deep": {"x": float("nan") if n == 5 else n / 2, "name": f"m{n % 30}"},
        }
        for n in range(300)
    ]
    documents[17] = {}
    data.insert_many("data", torch.zeros(300, 2), documents)
    for field in ("tag", "metadata.deep.name"):
        data.create_index("data", field)
    return data


def assert_answers_are_right(db: TensorStorage, name: str = "data") -> None:
    """Compare every condition with the same one in a form that no index can serve."""
    for where, params in CONDITIONS:
        plain = f"(\n{where}\n) OR record_id IS NULL"
        expected = [each.id for each in db.query(name, plain, params=params)]
        assert [each.id for each in db.query(name, where, params=params)] == expected, where
        assert db.count(name, where, params=params) == len(expected), where


def explained(db: TensorStorage, where: str, field: str) -> str:
    """Return how DuckDB looks a value up in the table of the index that a field has."""
    with db._db.catalog.read() as con:
        row = db._db.catalog.known.dataset(con, "data")
        (index,) = [each for each in row.indexes if each.field == field]
        table = f"tensordb.index_{row.dataset_id}_{index.number}"
        rows = con.execute(f"EXPLAIN ANALYZE SELECT seq FROM {table} WHERE {where}").fetchall()
    return "\n".join(row[1] for row in rows)


def test_answers_are_the_same_with_an_index_and_without(indexed: TensorStorage) -> None:
    assert indexed.list_indexes("data") == ["tag", "deep.name"]
    assert_answers_are_right(indexed)
    for field in ("TAG", "metadata.deep.name"):
        indexed.drop_index("data", field)
    assert indexed.list_indexes("data") == []
    assert_answers_are_right(indexed)


def test_duckdb_scans_the_index_for_equality_and_the_table_for_a_range(data: TensorStorage) -> None:
    data.insert_many("data", torch.zeros(20_000, 1), [{"tag": f"k{n}"} for n in range(20_000)])
    data.create_index("data", "tag")
    assert "Index Scan" in explained(data, "value = 'k777'", "tag")
    assert "Sequential Scan" in explained(data, "value BETWEEN 'k777' AND 'k778'", "tag")
    assert data.count("data", "metadata.tag = 'k777'") == 1


def test_inserts_updates_and_deletes_reach_the_index(indexed: TensorStorage) -> None:
    key = indexed.insert("data", torch.ones(2), {"tag": "k7", "n": 7})
    indexed.insert_many("data", torch.ones(4, 2), [{"tag": "k7"}, {"TAG": "k7", "n": 1}, {}, {"tag": None}])
    assert_answers_are_right(indexed)
    indexed.update_tensor_metadata("data", key, {"tag": "k8", "deep": {"x": 1.5}})
    assert_answers_are_right(indexed)
    indexed.update_tensor_metadata("data", key, None)
    indexed.delete_where("data", "metadata.n = 7 AND metadata.tag = 'k7'")
    indexed.delete_tensor("data", key)
    assert_answers_are_right(indexed)
    assert indexed.delete_where("data", "metadata.tag = 'k9'") == indexed.count("data", "metadata.tag = 'k9'") + 4


def test_a_field_that_widens_keeps_its_index(indexed: TensorStorage) -> None:
    indexed.insert("data", torch.ones(2), {"n": 7.5, "new": 1, "deep": {"y": 2}})
    assert_answers_are_right(indexed)
    indexed.insert("data", torch.ones(2), {"n": "seven"})
    assert indexed.count("data", "metadata.n = 'seven'") == 1
    assert indexed.count("data", "metadata.n = '7.0'") == indexed.count("data", "metadata.n || '' = '7.0'") > 0
    key = indexed.insert("data", torch.ones(2), {"tag": ["a", "list"]})
    indexed.update_tensor_metadata("data", key, {"deep": 3})
    indexed.insert("data", torch.ones(2), {"tag": "k7"})
    assert indexed.count("data", "metadata.tag = 'k7'") == indexed.count("data", "metadata.tag || '' = 'k7'") > 0
    assert indexed.list_indexes("data") == ["tag", "deep.name"]


def test_a_transaction_sees_its_own_index_and_undoes_it(indexed: TensorStorage) -> None:
    def change_everything() -> None:
        with indexed.transaction():
            indexed.insert("data", torch.ones(2), {"tag": "k7", "n": "text now"})
            indexed.delete_where("data", "metadata.tag = 'k8'")
            indexed.drop_index("data", "deep.name")
            assert indexed.count("data", "metadata.tag = 'k7'") == before + 1
            assert indexed.count("data", "metadata.tag = 'k8'") == 0
            raise RuntimeError("undo")

    before = indexed.count("data", "metadata.tag = 'k7'")
    with pytest.raises(RuntimeError, match="undo"):
        change_everything()
    assert indexed.count("data", "metadata.tag = 'k7'") == before
    assert indexed.list_indexes("data") == ["tag", "deep.name"]
    assert_answers_are_right(indexed)


def test_an_index_is_there_for_other_processes_and_after_reopening(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db:
        db.create_dataset("data")
        db.insert_many(
            "data",
            torch.zeros(100, 1),
            [{"tag": f"k{n % 9}", "n": n, "deep": {"x": 0.5, "name": "m1"}} for n in range(100)],
        )
        db.create_index("data", "tag")
        in_another_process(
            tmp_path,
            "assert db.list_indexes('data') == ['tag']\n"
            "db.insert('data', torch.ones(1), {'tag': 'k7', 'n': 1, 'deep': {'name': 'm3'}})\n"
            "db.delete_where('data', \"metadata.tag = 'k8'\")\n"
            "db.create_index('data', 'deep.name')",
        )
        assert db.list_indexes("data") == ["tag", "deep.name"]
        assert db.count("data", "metadata.tag = 'k7'") == 12
        assert_answers_are_right(db)
    with TensorStorage(tmp_path, read_only=True) as db:
        assert_answers_are_right(db)


def test_a_dataset_takes_its_indexes_with_it(indexed: TensorStorage) -> None:
    indexed.delete_dataset("data")
    tables = "SELECT table_name FROM duckdb_tables() WHERE table_name LIKE 'index%'"
    assert indexed.sql(tables).num_rows == 0
    indexed.create_dataset("data")
    indexed.insert("data", torch.zeros(2), {"tag": "k7"})
    assert indexed.list_indexes("data") == []
    indexed.create_index("data", "tag")
    assert indexed.count("data", "metadata.tag = 'k7'") == 1


def test_what_makes_no_sense_is_refused(indexed: TensorStorage) -> None:
    indexed.insert("data", torch.zeros(2), {"flag": True, "list": [1]})
    for field in ("nothing", "deep", "deep.nothing", "n", "deep.x", "flag", "list", "", 7, None):
        with pytest.raises(InvalidInputError):
            indexed.create_index("data", field)  # type: ignore[arg-type]
    with pytest.raises(AlreadyExistsError, match="TAG"):
        indexed.create_index("data", "TAG")
    with pytest.raises(NotFoundError, match="list"):
        indexed.drop_index("data", "list")
    with pytest.raises(NotFoundError):
        indexed.create_index("nothing", "tag")
    with pytest.raises(InvalidQueryError):
        indexed.query("data", "metadata.tag = 'k7' AND metadata.missing = 1")
