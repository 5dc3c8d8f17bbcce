"""Weights stored as what changed since another one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from storage.tensors import DTYPES, same, sample

from tensordb import InvalidInputError, TensorStorage, WeightNotFoundError
from tensordb.engine.contents import MAX_DELTAS
from tensordb.weights.accessor import Weights

from .drawing import drawn, nudged


def test_a_delta_is_smaller_and_comes_back_bit_for_bit(weights: Weights) -> None:
    base = drawn(300, 100)
    changed = nudged(base)
    first = weights.store(base)
    found = weights.store_delta(changed, first, name="w", model_name="tuned", metadata={"epoch": 2})
    assert same(weights.load_delta(found), changed)
    assert same(weights.load(found), changed)
    assert same(weights.load_batch([found, first])[first], base)
    (info,) = weights.list_deltas(first)
    assert (info.hash, info.base_hash, info.name, info.metadata) == (found, first, "w", {"epoch": 2})
    assert (info.deltas, info.max_error, info.error.max_abs) == (1, None, 0.0)
    assert info.stored_nbytes < 0.7 * weights.get_metadata(first).stored_nbytes
    assert weights.get_metadata(found[:8]).base_hash == first


def test_a_delta_of_any_dtype_is_exact(db: TensorStorage) -> None:
    shapes = [(), (0, 3), (5,), (80, 100)]
    for dtype in DTYPES:
        pairs = [(sample(dtype, *shape), sample(dtype, *shape, seed=1)) for shape in shapes]
        with db.transaction():
            found = [db.weights.store_delta(other, db.weights.store(base)) for base, other in pairs]
        for each, (_, other) in zip(found, pairs, strict=True):
            assert same(db.weights.load_delta(each), other), (dtype, other.shape)


def test_weights_and_deltas_are_told_apart(weights: Weights) -> None:
    base = weights.store(drawn(50, 50))
    found = weights.store_delta(nudged(drawn(50, 50)), base)
    assert weights.delta_exists(found)
    assert not weights.delta_exists(base)
    assert weights.exists(base)
    assert not weights.exists(found)
    assert [each.hash for each in weights.list_weights()] == [base]
    assert [each.hash for each in weights.list_deltas()] == [found]
    with pytest.raises(WeightNotFoundError, match="delta"):
        weights.delete(found)
    with pytest.raises(WeightNotFoundError):
        weights.delete_delta(base)
    with pytest.raises(WeightNotFoundError):
        weights.load_delta(base)


def test_a_deleted_base_lives_on_for_its_deltas_and_goes_with_the_last(weights: Weights) -> None:
    base = drawn(200, 100)
    first = weights.store(base)
    hashes = [weights.store_delta(nudged(base, seed=seed), first) for seed in (1, 2)]
    weights.delete(first)
    assert not weights.exists(first)
    with pytest.raises(WeightNotFoundError):
        weights.load(first)
    with pytest.raises(WeightNotFoundError):
        weights.store_delta(nudged(base, seed=3), first)
    assert [each.hash for each in weights.list_deltas(first)] == hashes
    assert weights.get_storage_info().objects == 3
    for seed, found in zip((1, 2), hashes, strict=True):
        assert same(weights.load_delta(found), nudged(base, seed=seed))
    weights.delete_delta(hashes[0])
    assert same(weights.load_delta(hashes[1]), nudged(base, seed=2))
    weights.delete_delta(hashes[1])
    info = weights.get_storage_info()
    assert (info.weights, info.deltas, info.objects, info.stored_nbytes) == (0, 0, 0, 0)


def test_a_delta_that_equals_its_base_outlives_it(weights: Weights) -> None:
    frozen = drawn(50, 50)
    first = weights.store(frozen)
    assert weights.store_delta(frozen.clone(), first) == first
    assert weights.get_storage_info().objects == 1
    weights.delete(first)
    assert not weights.exists(first)
    assert weights.delta_exists(first)
    assert same(weights.load_delta(first), frozen)
    weights.delete_delta(first)
    with pytest.raises(WeightNotFoundError):
        weights.load(first)


def test_a_delta_stored_with_two_bases_is_listed_with_both(weights: Weights) -> None:
    tensor = drawn(60, 60)
    bases = [weights.store(nudged(tensor, seed=seed)) for seed in (1, 2)]
    found = [weights.store_delta(tensor, base) for base in bases]
    assert found[0] == found[1]
    assert [[each.base_hash for each in weights.list_deltas(base)] for base in bases] == [[bases[0]], [bases[1]]]
    weights.delete_delta(found[0], base_hash=bases[0][:16])
    assert weights.list_deltas(bases[0]) == []
    assert same(weights.load_delta(found[0]), tensor)
    with pytest.raises(WeightNotFoundError, match="base"):
        weights.delete_delta(found[0], base_hash=bases[0])
    weights.delete_delta(found[0])
    assert not weights.delta_exists(found[0])


def test_a_wrong_base_is_a_typed_error(weights: Weights) -> None:
    tensor = drawn(10, 10)
    base = weights.store(tensor)
    for wrong in (tensor.half(), tensor.reshape(100), tensor[:9], tensor.double()):
        with pytest.raises(InvalidInputError, match="same dtype and shape"):
            weights.store_delta(wrong, base)
    with pytest.raises(WeightNotFoundError):
        weights.store_delta(tensor, "1" * 64)
    for wrong in ("", None, 3, tensor):
        with pytest.raises(InvalidInputError, match="base_hash"):
            weights.store_delta(tensor, wrong)
    assert weights.list_deltas() == []
    assert weights.list_deltas("1" * 64) == []


def test_a_preset_that_quantizes_is_refused_for_a_delta(db: TensorStorage) -> None:
    tensor = drawn(50, 50)
    base = db.weights.store(tensor)
    with pytest.raises(InvalidInputError, match="max_error="):
        db.weights.store_delta(nudged(tensor), base, preset="maximum")
    db.set_compression_preset("maximum")  # not asked for with the delta, which is exact all the same
    found = db.weights.store_delta(nudged(tensor), base)
    assert same(db.weights.load_delta(found), nudged(tensor))
    lossy = db.weights.store(tensor)
    over = db.weights.store_delta(nudged(tensor, seed=3), lossy)
    assert same(db.weights.load_delta(over), nudged(tensor, seed=3))


def test_a_chain_of_deltas_stays_short_and_exact(db: TensorStorage) -> None:
    tensor, weights = drawn(100, 100), db.weights
    found = [weights.store(tensor)]
    expected = [tensor]
    for seed in range(1, MAX_DELTAS + 20):
        expected.append(nudged(expected[-1], 1e-6, seed))
        found.append(weights.store_delta(expected[-1], found[-1]))
    lengths = [weights.get_metadata(each).deltas for each in found]
    assert 2 <= max(lengths) <= MAX_DELTAS
    assert lengths.count(0) > 1
    for each, wanted in zip(found, expected, strict=True):
        assert same(weights.load(each), wanted)
    with db.transaction():
        for each in found[:-1]:
            weights.delete(each) if each == found[0] else weights.delete_delta(each)
    assert same(weights.load_delta(found[-1]), expected[-1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("max_error", [1e-5, 1e-3, 0.3])
def test_a_delta_within_a_bound_is_smaller_and_within_it(
    weights: Weights, dtype: torch.dtype, max_error: float
) -> None:
    base = drawn(200, 200).to(dtype)
    changed = nudged(base, 1e-2)
    first = weights.store(base)
    found = weights.store_delta(changed, first, max_error=max_error)
    loaded = weights.load_delta(found)
    worst = (loaded.double() - changed.double()).abs().max().item()
    assert worst <= max_error
    (info,) = weights.list_deltas(first)
    assert (info.hash, info.max_error, info.error.max_abs) == (found, max_error, worst)
    exact = weights.get_metadata(weights.store_delta(changed, first))
    assert found == first or info.stored_nbytes <= 1.001 * exact.stored_nbytes
    if max_error == 1e-3 and dtype in (torch.float32, torch.float64):
        assert info.stored_nbytes < 0.7 * exact.stored_nbytes
    assert weights.store_delta(loaded, first) == found  # the hash is that of what is loaded


def test_changes_below_the_bound_cost_nothing(weights: Weights) -> None:
    base = drawn(100, 100)
    first = weights.store(base)
    before = weights.get_storage_info().stored_nbytes
    assert weights.store_delta(nudged(base, 1e-6), first, max_error=1e-4) == first
    assert weights.get_storage_info().stored_nbytes == before
    (info,) = weights.list_deltas(first)
    assert 0 < info.error.max_abs <= 1e-4
    assert info.max_error == 1e-4
    weights.store_delta(nudged(base, 1e-3), first, max_error=0.5)
    (info,) = weights.list_deltas(first)  # now of two tensors: what is said holds for both
    assert info.max_error == 0.5
    assert info.error.max_abs > 1e-4


def test_nearness_is_to_what_a_delta_of_a_delta_is_read_with(weights: Weights) -> None:
    first = drawn(200, 200)
    base = weights.store(first)
    middle = weights.store_delta(nudged(first, 1e-2), base)
    assert weights.get_metadata(middle).deltas == 1
    assert weights.store_delta(nudged(first, 1e-6, seed=2), middle, max_error=1e-4) == base
    changed = nudged(first, 3e-3, seed=3)
    found = weights.store_delta(changed, middle, max_error=1e-3)
    exact = weights.store_delta(changed, middle)
    assert weights.get_metadata(found).stored_nbytes < 0.7 * weights.get_metadata(exact).stored_nbytes
    assert (weights.load_delta(found) - changed).abs().max() <= 1e-3


def test_a_delta_within_a_bound_that_is_stored_by_itself_is_smaller_too(weights: Weights) -> None:
    base = weights.store(drawn(200, 200), preset="none")
    found = weights.store_delta(drawn(200, 200, seed=5), base, max_error=1e-3, preset="fast")
    info = weights.get_metadata(found)
    assert (info.deltas, info.stored_nbytes < 0.8 * info.nbytes) == (0, True)
    assert (weights.load_delta(found) - drawn(200, 200, seed=5)).abs().max() <= 1e-3


@settings(deadline=None, max_examples=80)
@given(
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    max_error=st.floats(1e-300, 1e300),
    seed=st.integers(0, 1000),
)
def test_no_bound_is_ever_broken_and_what_is_not_finite_stays(dtype: torch.dtype, max_error: float, seed: int) -> None:
    from tensordb.weights.nearing import near

    base, wanted = sample(dtype, 300, seed=seed), sample(dtype, 300, seed=seed + 1)
    wanted[:3] = torch.tensor([math.nan, math.inf, -0.0]).to(dtype)
    found, error = near(wanted, base, max_error)
    finite = wanted.isfinite()
    assert same(found[~finite], wanted[~finite])
    assert same(found[wanted == 0], wanted[wanted == 0])
    apart = (found.double() - wanted.double()).abs()[finite]
    assert (apart <= max_error).all()
    assert error.max_abs == apart.max().item()


def test_a_bound_is_for_floats_and_above_zero(weights: Weights) -> None:
    base = weights.store(drawn(10))
    for wrong in (0, -1e-3, math.nan, math.inf, "1e-3", True):
        with pytest.raises(InvalidInputError, match="max_error"):
            weights.store_delta(drawn(10), base, max_error=wrong)
    ints = weights.store(torch.arange(10))
    with pytest.raises(InvalidInputError, match="int64"):
        weights.store_delta(torch.arange(10), ints, max_error=0.5)
