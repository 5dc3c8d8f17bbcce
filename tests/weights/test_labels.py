"""What is known of weights: labels, metadata, lists, SQL."""

import datetime as dt
import math

import pytest
import torch
from storage.tensors import same

from tensordb import InvalidInputError, InvalidQueryError, TensorStorage, WeightInfo
from tensordb.weights.accessor import Weights

from .drawing import drawn


def names(found: list[WeightInfo]) -> list[str | None]:
    return [each.name for each in found]


def test_one_hash_keeps_every_label_it_was_given(weights: Weights) -> None:
    tensor = drawn(5)
    found = weights.store(tensor)
    assert weights.get_metadata(found).labels == ()
    assert (weights.get_metadata(found).name, weights.get_metadata(found).metadata) == (None, {})
    weights.store(tensor, name="a", layer_type="Linear", model_name="m", metadata={"epoch": 1})
    weights.store(tensor, name="a", model_name="other")
    weights.store(tensor)
    info = weights.get_metadata(found)
    assert [(each.name, each.layer_type, each.model_name) for each in info.labels] == [
        ("a", "Linear", "m"),
        ("a", None, "other"),
    ]
    assert (info.name, info.layer_type, info.model_name, info.metadata) == ("a", "Linear", "m", {"epoch": 1})


def test_the_same_label_again_replaces_its_metadata_and_keeps_its_place(weights: Weights) -> None:
    tensor = drawn(5)
    found = weights.store(tensor, name="a", metadata={"epoch": 1})
    weights.store(tensor, name="b")
    weights.store(tensor, name="a", metadata={"epoch": 2})
    assert [(each.name, each.metadata) for each in weights.get_metadata(found).labels] == [
        ("a", {"epoch": 2}),
        ("b", {}),
    ]
    assert len(weights.list_weights()) == 1


def test_metadata_comes_back_as_it_was_given(weights: Weights) -> None:
    metadata = {
        "int": 1,
        "float": 1.0,
        "nan": math.inf,
        "none": None,
        "flag": True,
        "big": 2**80,
        "when": dt.datetime(2024, 1, 2, tzinfo=dt.UTC),
        "list": [1, "ü", {"deep": []}],
    }
    found = weights.store(drawn(3), metadata=metadata)
    loaded = weights.get_metadata(found).metadata
    assert loaded == metadata
    assert {key: type(value) for key, value in loaded.items()} == {key: type(value) for key, value in metadata.items()}


def test_weights_are_listed_oldest_first_and_by_label(weights: Weights) -> None:
    for number, (name, kind, model) in enumerate(
        [("a", "Linear", "m"), ("b", "Conv2d", "m"), ("c", "Linear", "n"), (None, None, None)]
    ):
        weights.store(drawn(4, seed=number), name=name, layer_type=kind, model_name=model)
    weights.store(drawn(4, seed=1), name="again", layer_type="Linear", model_name="n")
    assert names(weights.list_weights()) == ["a", "b", "c", None]
    assert names(weights.list_weights(model_name="m")) == ["a", "b"]
    assert names(weights.list_weights(layer_type="Linear")) == ["a", "b", "c"]
    assert names(weights.list_weights(layer_type="Conv2d", model_name="n")) == []  # of one label, not of two
    assert names(weights.list_weights(name="again")) == ["b"]
    assert names(weights.list_weights(name="x")) == []
    with pytest.raises(InvalidInputError, match="model_name is 3"):
        weights.list_weights(model_name=3)


def test_weights_are_found_by_sql_over_everything_known(weights: Weights) -> None:
    weights.store(drawn(4), name="small", metadata={"epoch": 1, "loss": 0.5})
    large = weights.store(drawn(4, 100).half(), name="large", metadata={"epoch": 2})
    weights.store(drawn(9).int(), name="ints")
    assert names(weights.list_weights(where="dtype = 'float16' AND nbytes > 100")) == ["large"]
    assert names(weights.list_weights(where="(metadata->>'epoch')::INT < 2 -- early")) == ["small"]
    assert names(weights.list_weights(where="shape[1] = ?", params=[4])) == ["small", "large"]
    assert names(weights.list_weights(where="hash = $wanted", params={"wanted": large})) == ["large"]
    assert names(weights.list_weights(where="name LIKE '%s%'", name="ints")) == ["ints"]
    assert names(weights.list_weights(where="false")) == []
    for wrong in ("nothing = 1", "1; DROP TABLE tensordb.weights", "name ="):
        with pytest.raises(InvalidQueryError):
            weights.list_weights(where=wrong)
    for wrong in ("", 3):
        with pytest.raises(InvalidInputError):
            weights.list_weights(where=wrong)
    with pytest.raises(InvalidInputError, match="without a condition"):
        weights.list_weights(params=[1])
    assert len(weights.list_weights()) == 3


def test_sql_sees_a_row_for_each_label_of_each_weight(db: TensorStorage) -> None:
    tensor = drawn(10)
    found = db.weights.store(tensor, name="a", model_name="m", metadata={"epoch": 3, "nan": math.nan})
    db.weights.store(tensor, name="b")
    db.weights.store(torch.ones(2))
    rows = db.sql("SELECT * FROM history.weights ORDER BY created_at, name").to_pylist()
    assert [row["name"] for row in rows] == ["a", "b", None]
    assert {rows[0]["hash"], rows[1]["hash"]} == {found}
    assert (rows[0]["dtype"], rows[0]["shape"], rows[0]["nbytes"], rows[0]["deltas"]) == ("float32", [10], 40, 0)
    assert db.sql("SELECT (metadata->>'epoch')::INT AS e FROM history.weights WHERE name = 'a'").to_pylist() == [
        {"e": 3}
    ]


def test_hostile_names_are_only_names(weights: Weights) -> None:
    for seed, name in enumerate(("", " ", "'; DROP TABLE tensordb.weights; --", "../../x", "ü𝄞", "%", "a" * 10_000)):
        tensor = drawn(3, seed=seed)
        found = weights.store(tensor, name=name, metadata={name: name})
        assert weights.get_metadata(found).labels[0].name == name
        assert weights.list_weights(name=name)[0].hash == found
        assert same(weights.load(found), tensor)


def test_created_at_is_when_it_was_stored_first_in_utc(weights: Weights) -> None:
    before = dt.datetime.now(dt.UTC)
    found = weights.store(drawn(3))
    created = weights.get_metadata(found).created_at
    assert before <= created <= dt.datetime.now(dt.UTC)
    weights.store(drawn(3), name="later")
    assert weights.get_metadata(found).created_at == created
    assert found[:12] in repr(weights.get_metadata(found))
