"""Weights, checkpoints and records hold the same objects; none of them harms another."""

import pytest
import torch
from storage.tensors import same

from tensordb import TensorStorage, WeightNotFoundError

from .drawing import drawn, nudged


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    return {f"layer.{number}": drawn(40, 50, seed=10 * seed + number) for number in range(4)}


def test_a_weight_that_a_checkpoint_holds_is_stored_without_a_byte(db: TensorStorage) -> None:
    db.checkpoints.save("run", state(), step=1, rng=False)
    rows = "SELECT count(*) AS n, sum(stored_nbytes) AS nbytes FROM tensordb.objects"
    before = db.sql(rows).to_pylist()
    hashes = db.weights.store_batch(state())
    assert db.sql(rows).to_pylist() == before
    assert db.weights.get_storage_info().shared == 4
    known = db.sql("SELECT name, content_id FROM history.tensors WHERE role = 'model'").to_pylist()
    assert {row["name"].removeprefix("model."): row["content_id"] for row in known} == hashes


def test_a_checkpoint_of_stored_weights_adds_only_the_rest_of_its_state(db: TensorStorage) -> None:
    db.weights.store_batch(state())
    saved = db.checkpoints.save("run", state(), step=1, rng=False)
    assert saved.nbytes == 4 * 8000
    assert saved.added_nbytes < 2000


@pytest.mark.parametrize("first", ["weights", "checkpoint"])
def test_deleting_either_leaves_the_other(db: TensorStorage, first: str) -> None:
    hashes = db.weights.store_batch(state())
    db.checkpoints.save("run", state(), step=1, rng=False)
    if first == "weights":
        for found in hashes.values():
            db.weights.delete(found)
        loaded = db.checkpoints.load("run")["model"]
    else:
        db.checkpoints.delete_run("run")
        loaded = {name: db.weights.load(found) for name, found in hashes.items()}
    db.maintenance.compact(min_dead=0)
    assert db.maintenance.verify().ok
    for name, tensor in state().items():
        assert same(loaded[name], tensor)
    if first == "weights":
        db.checkpoints.delete_run("run")
    else:
        for found in hashes.values():
            db.weights.delete(found)
    assert db.sql("SELECT count(*) AS n FROM tensordb.objects").to_pylist() == [{"n": 0}]


def test_a_weight_that_a_checkpoint_holds_as_a_difference_outlives_all_checkpoints(db: TensorStorage) -> None:
    tensor = drawn(100, 100)
    db.checkpoints.save("run", {"w": tensor}, step=1, rng=False)
    db.checkpoints.save("run", {"w": nudged(tensor)}, step=2, rng=False)
    found = db.weights.store(nudged(tensor))
    assert db.weights.get_metadata(found).deltas == 1
    db.checkpoints.delete_run("run")
    db.maintenance.compact(min_dead=0)
    assert same(db.weights.load(found), nudged(tensor))
    assert db.weights.get_storage_info().objects == 2
    assert db.maintenance.verify().ok


def test_a_record_and_a_weight_share_a_large_tensor(db: TensorStorage) -> None:
    db.create_dataset("d")
    tensor = drawn(100, 200)
    record = db.insert("d", tensor)
    found = db.weights.store(tensor)
    assert db.weights.get_storage_info().shared == 1
    db.delete_tensor("d", record)
    assert same(db.weights.load(found), tensor)
    record = db.insert("d", tensor)
    db.weights.delete(found)
    with pytest.raises(WeightNotFoundError):
        db.weights.load(found)
    assert same(db.get_tensor_by_id("d", record).tensor, tensor)


def test_sums_count_each_object_once_and_bases_too(db: TensorStorage) -> None:
    tensor = drawn(100, 100)
    base = db.weights.store(tensor, name="a")
    db.weights.store(tensor, name="b")
    db.weights.store_delta(nudged(tensor), base)
    db.weights.delete(base)
    info = db.weights.get_storage_info()
    assert (info.weights, info.deltas, info.labels, info.objects, info.changes) == (0, 1, 0, 2, 1)
    assert info.nbytes == 40_000
    stored = db.sql("SELECT sum(stored_nbytes)::BIGINT AS n FROM tensordb.objects").to_pylist()[0]["n"]
    assert info.stored_nbytes == stored
    assert info.ratio == info.nbytes / stored
    assert info.shared == 0
    with TensorStorage(None) as empty:
        assert empty.weights.get_storage_info().ratio == 1.0
