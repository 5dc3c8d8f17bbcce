"""The filter never calls absent what is there, and is seldom wrong about the rest."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tensordb import TensorStorage, WeightNotFoundError
from tensordb.catalog.bloom import FEWEST, BloomFilter


def hashes(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32), np.uint8)


def test_one_in_a_hundred_absent_ids_is_taken_for_present_and_no_present_one_for_absent() -> None:
    present, absent = hashes(20_000, 0), hashes(20_000, 1)
    known = BloomFilter(20_000)
    known.add_all(present[:15_000])
    for each in present[15_000:]:
        known.add(each.tobytes())
    assert not any(known.surely_lacks(each.tobytes()) for each in present)
    wrong = sum(not known.surely_lacks(each.tobytes()) for each in absent) / len(absent)
    assert 0.003 < wrong < 0.015
    assert known.nbytes == pytest.approx(20_000 * 10 / 8, rel=0.01)


def test_an_overfull_filter_is_wrong_on_the_safe_side_only() -> None:
    present = hashes(5_000, 2)
    known = BloomFilter(100)
    known.add_all(present)
    assert not any(known.surely_lacks(each.tobytes()) for each in present)
    assert BloomFilter(0).surely_lacks(bytes(16))


def test_equal_tensors_share_an_object_however_many_were_asked_for(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(4000, generator=generator) for _ in range(3 * FEWEST)]
    with TensorStorage(tmp_path) as db, TensorStorage(tmp_path) as other:
        db.create_dataset("data")
        for _ in range(2):
            for each in tensors:
                db.insert("data", each)
        other.insert("data", torch.ones(70_000).cumsum(0))
        for each in (tensors[0], torch.ones(70_000).cumsum(0)):
            db.insert("data", each)
        count = db.sql("SELECT count(*) AS n, max(refs) AS m FROM tensordb.objects").to_pylist()
        assert count == [{"n": len(tensors) + 1, "m": 3}]


def test_a_weight_is_found_as_soon_as_anybody_stored_it_and_not_before(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db, TensorStorage(tmp_path) as other:
        first = db.weights.store(torch.ones(3), name="first")
        for _ in range(3 * FEWEST):
            with pytest.raises(WeightNotFoundError, match="0000"):
                db.weights.load("0" * 64)
            assert db.weights.load(first).sum() == 3
        mine = db.weights.store(torch.zeros(5), name="mine")
        theirs = other.weights.store(torch.full((7,), 2.0), name="theirs")
        for _ in range(3 * FEWEST):
            assert db.weights.load(mine).shape == (5,)
            assert db.weights.load(theirs).sum() == 14
        with db.transaction():
            inside = db.weights.store(torch.zeros(11), name="inside")
            for _ in range(3 * FEWEST):
                assert db.weights.load(inside).shape == (11,)
