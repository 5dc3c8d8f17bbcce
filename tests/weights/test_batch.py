"""Many weights in one commit."""

from collections.abc import Iterator

import pytest
import torch
from storage.tensors import DTYPES, same, sample

from tensordb import InvalidInputError, TensorStorage, Weight
from tensordb.engine import contents
from tensordb.weights.accessor import Weights

from .drawing import drawn


def test_a_state_dict_comes_back_by_its_names(weights: Weights) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.BatchNorm1d(30), torch.nn.Linear(30, 2))
    hashes = weights.store_batch(net.state_dict(), model_name="net", metadata={"epoch": 1})
    assert list(hashes) == list(net.state_dict())
    loaded = weights.load_batch(hashes.values())
    assert list(loaded) == list(dict.fromkeys(hashes.values()))
    for name, tensor in net.state_dict().items():
        assert same(loaded[hashes[name]], tensor)
    found = weights.list_weights(model_name="net")
    assert {label.name for each in found for label in each.labels} == set(hashes)
    assert all(label.metadata == {"epoch": 1} for each in found for label in each.labels)


def test_an_iterable_gives_hashes_in_order_equal_ones_the_same(weights: Weights) -> None:
    tensors = [sample(dtype, 6) for dtype in DTYPES] + [drawn(3)]
    hashes = weights.store_batch(iter([*tensors, tensors[0], ("named", tensors[1]), Weight(tensors[2], "own")]))
    assert len(hashes) == len(tensors) + 3
    assert hashes[-3:] == hashes[:3]
    for found, tensor in zip(hashes, tensors, strict=False):
        assert same(weights.load(found), tensor)
    assert weights.get_metadata(hashes[1]).name == "named"
    assert weights.get_metadata(hashes[2]).name == "own"


def test_names_of_a_mapping_yield_to_those_of_its_weights(weights: Weights) -> None:
    hashes = weights.store_batch({"key": Weight(drawn(3), "own"), "plain": Weight(drawn(4), layer_type="Linear")})
    assert weights.get_metadata(hashes["key"]).name == "own"
    assert (weights.get_metadata(hashes["plain"]).name, weights.get_metadata(hashes["plain"]).layer_type) == (
        "plain",
        "Linear",
    )


def test_one_that_cannot_be_stored_leaves_nothing_of_the_batch(weights: Weights) -> None:
    with pytest.raises(InvalidInputError, match=r"weights\['bad'\].*torch\.as_tensor"):
        weights.store_batch({"good": drawn(3), "bad": [1.0]})
    with pytest.raises(InvalidInputError, match=r"weights\[1\].*meta"):
        weights.store_batch([drawn(3), torch.zeros(2, device="meta")])

    def failing() -> Iterator[torch.Tensor]:
        yield drawn(3000)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        weights.store_batch(failing())
    assert weights.list_weights() == []
    assert weights.get_storage_info().objects == 0


def test_what_is_no_batch_is_refused(weights: Weights) -> None:
    for wrong in (drawn(3), Weight(drawn(3)), "text", None, 5, torch.nn.Linear(2, 2)):
        with pytest.raises(InvalidInputError, match="state_dict"):
            weights.store_batch(wrong)
    with pytest.raises(InvalidInputError, match="name is 3"):
        weights.store_batch({3: drawn(3)})
    for wrong in ("a" * 64, None, 3):
        with pytest.raises(InvalidInputError, match="list of hashes"):
            weights.load_batch(wrong)
    with pytest.raises(InvalidInputError, match="hexadecimal"):
        weights.load_batch([3])


def test_an_empty_batch_is_nothing(weights: Weights) -> None:
    assert weights.store_batch({}) == {}
    assert weights.store_batch([]) == []
    assert weights.load_batch([]) == {}
    assert weights.list_weights() == []


def test_a_batch_larger_than_what_is_held_is_stored_in_parts_and_named_at_once(
    db: TensorStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "_GROUP_NBYTES", 4000)
    seen = []

    def tensors() -> Iterator[torch.Tensor]:
        for seed in range(20):
            seen.append(len(db.weights.list_weights()))
            yield drawn(300, seed=seed % 15)

    hashes = db.weights.store_batch(tensors())
    assert seen == [0] * 20
    assert len(db.weights.list_weights()) == 15
    assert hashes[15:] == hashes[:5]
    for seed, found in enumerate(hashes):
        assert same(db.weights.load(found), drawn(300, seed=seed % 15))


def test_the_tensors_of_an_iterable_are_let_go_part_by_part(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    monkeypatch.setattr(contents, "_GROUP_NBYTES", 4000)
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def tensors() -> Iterator[torch.Tensor]:
        nonlocal most
        for seed in range(40):
            tensor = drawn(250, seed=seed)
            alive.append(weakref.ref(tensor.untyped_storage()))
            most = max(most, sum(each() is not None for each in alive))
            yield tensor
            del tensor

    weights.store_batch(tensors())
    assert most <= 8  # of 1 kB each, in parts of 4 kB


def test_a_large_batch_of_small_weights_is_one_commit(weights: Weights) -> None:
    hashes = weights.store_batch({f"w{number}": torch.tensor(number) for number in range(3000)})
    assert len(set(hashes.values())) == 3000
    loaded = weights.load_batch(hashes.values())
    assert all(loaded[found].item() == number for number, found in enumerate(hashes.values()))
    assert weights.get_storage_info().labels == 3000
