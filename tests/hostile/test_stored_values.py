"""What the fuzzers found in the readers of stored values, each by itself: a typed error that says what is damaged."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import msgpack
import pytest
import torch

from tensordb import FormatError, IntegrityError, TensorStorage
from tensordb.catalog import documents, fields, schema
from tensordb.checkpoints.checkpoint import facts_of

DEEP = '{"list":' * 5000 + '"BIGINT"' + "}" * 5000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A database of one dataset."""
    with TensorStorage(tmp_path / "x.tdb") as db:
        db.create_dataset("points", schema={"metadata": {"tag": "str"}})
        db.insert("points", torch.ones(3), {"tag": "a", "n": 1})
    return tmp_path / "x.tdb"


@pytest.fixture
def changed(folder: Path) -> Iterator[Any]:
    """Change a column of the dataset's row, and open the database anew."""
    opened = []

    def change(column: str, text: str | None) -> TensorStorage:
        with duckdb.connect(str(folder / "catalog.duckdb")) as con:
            con.execute(f"UPDATE tensordb.datasets SET {column} = ?", [text])
        opened.append(TensorStorage(folder))
        return opened[-1]

    yield change
    for db in opened:
        db.close()


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("fields", None), ("fields", "{"), ("fields", '"BIGINT"'), ("fields", '{"list": "BIGINT"}'), ("fields", DEEP),
        ("fields", '{"struct": 3}'), ("fields", '{"struct": {"a": "INTEGER); DROP TABLE x; --"}}'),
        ("fields", '{"struct": {"a": "BIGINT", "A": "BIGINT"}}'), ("fields", '{"struct": {"\\ud800": "BIGINT"}}'),
        ("fields", "9" * 5000), ("schema", "[]"), ("schema", '{"shape": 3}'), ("schema", '{"metadata": {"a": "blob"}}'),
        ("schema", "[" * 5000), ("config", "3"), ("config", '{"compression": "rot13"}'), ("config", '{"a": 1}'),
        ("indexes", "{}"), ("indexes", '[["1; DROP TABLE x", "tag"]]'), ("indexes", "[[1]]"), ("indexes", "[[1, 2]]"),
        ("indexes", '[[1, "a"], [1, "b"]]'), ("indexes", "[[-1, \"a\"]]"),
    ],
)  # fmt: skip
def test_a_damaged_row_of_a_dataset_is_named_and_no_sql(changed: Any, column: str, text: str | None) -> None:
    db = changed(column, text)
    with pytest.raises(IntegrityError, match="points"):
        db.insert("points", torch.ones(3), {"tag": "b"})


def nested(depth: int) -> Any:
    return {"a": nested(depth - 1)} if depth else 1


@pytest.mark.parametrize(
    "value",
    [{"a": b"x"}, {b"a": 1}, {"a": [b""]}, {"a": msgpack.Timestamp(1)}, nested(70), nested(500), {"a": {b"b": 1}}],
)
def test_metadata_of_values_that_none_is_written_with_is_refused(value: Any) -> None:
    with pytest.raises(IntegrityError, match="stored metadata"):
        documents.unpack(msgpack.packb(value))


def test_metadata_as_deep_as_any_may_be_comes_back() -> None:
    deepest = nested(documents.MAX_DEPTH + 1)
    assert documents.unpack(documents.pack(documents.normalize(deepest))) == deepest


def test_numbers_of_thousands_of_digits_go_wherever_metadata_goes() -> None:
    huge = 10**5000
    given = {"mixed": ["x", huge], "alone": huge, "deep": {"list": [[huge], "x"]}}
    with TensorStorage(None) as db:
        db.create_dataset("points")
        key = db.insert("points", torch.ones(1), given)
        assert db.get_tensor_by_id("points", key).metadata == given
        checkpoint = db.checkpoints.save("run", {"w": torch.ones(1)}, metadata=given)
        assert db.checkpoints.get(checkpoint.id).metadata == given


@pytest.mark.parametrize(
    "facts",
    [
        {"metrics": 3},
        {"metrics": {"loss": "low"}},
        {"metrics": {"a": [1]}},
        {"metadata": [1]},
        {"metrics": {"a": 1 << 2000}},
    ],
)
def test_facts_of_a_checkpoint_that_none_is_saved_with_are_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="metrics"):
        facts_of(documents.pack(facts) or b"")


@pytest.mark.parametrize("text", ["", "x" * 32, "00", "0" * 31 + "\u0660", None])
def test_a_database_id_that_is_none_is_refused(text: Any) -> None:
    with pytest.raises(FormatError, match="database id"):
        schema.database_id_of(text)


def test_the_types_of_all_values_survive_their_stored_form() -> None:
    kind = fields.struct_of({"a": 1, "b": {"c": [dt.date(2024, 1, 1)], "d": None}, "e": "x"})
    assert fields.from_dict(json.loads(json.dumps(fields.to_dict(kind)))) == kind
