"""Storing one weight and loading it back."""

import math

import pytest
import torch
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storage.tensors import DTYPES, bits, same, sample

from tensordb import InvalidInputError, TensorStorage, UnknownPresetError, Weight, WeightNotFoundError
from tensordb.weights.accessor import Weights

from .drawing import drawn

LOSSLESS = ["lossless", "none", "fast", "archive"]


def test_a_weight_comes_back_by_its_hash(weights: Weights) -> None:
    tensor = drawn(64, 64)
    found = weights.store(tensor)
    assert len(found) == 64
    assert int(found, 16)
    assert same(weights.load(found), tensor)
    assert weights.exists(found)


@pytest.mark.parametrize("preset", ["lossless", "none"])
def test_every_dtype_comes_back_bit_for_bit(db: TensorStorage, preset: str) -> None:
    shapes = [(), (0,), (3, 0, 2), (1,), (7, 5), (40, 50)]
    for dtype in DTYPES:
        tensors = [sample(dtype, *shape) for shape in shapes]
        with db.transaction():
            hashes = [db.weights.store(tensor, preset=preset) for tensor in tensors]
        for found, tensor in zip(hashes, tensors, strict=True):
            assert same(db.weights.load(found), tensor), (dtype, tensor.shape)


@pytest.fixture(scope="module")
def shared() -> Weights:
    return TensorStorage(None).weights


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 9), max_size=4),
    seed=st.integers(0, 3),
    preset=st.sampled_from(LOSSLESS),
    twist=st.sampled_from(["plain", "transposed", "every other", "expanded"]),
)
def test_any_tensor_comes_back_bit_for_bit_and_equal_ones_have_one_hash(
    shared: Weights, dtype: torch.dtype, shape: list[int], seed: int, preset: str, twist: str
) -> None:
    tensor = sample(dtype, *shape, seed=seed)
    if twist == "transposed":
        tensor = tensor.permute(tuple(reversed(range(tensor.ndim))))
    elif twist == "every other" and tensor.ndim and tensor.shape[0] > 2:
        tensor = tensor[::2]
    elif twist == "expanded":
        tensor = tensor.unsqueeze(0).expand(3, *tensor.shape)
    found = shared.store(tensor, preset=preset)
    assert same(shared.load(found), tensor)
    copy = torch.empty_like(tensor, memory_format=torch.contiguous_format) if tensor.dtype != torch.complex32 else None
    if copy is not None:
        assert shared.store(copy.copy_(tensor)) == found


def test_nan_payloads_and_the_sign_of_zero_survive_and_are_told_apart(weights: Weights) -> None:
    words = torch.tensor([0x7FC00000, 0x7FC00001, 0x7F800001, -0x400000, -0x80000000, 0], dtype=torch.int32)
    hashes = [weights.store(word.view(torch.float32)) for word in words]
    assert len(set(hashes)) == len(words)
    for word, found in zip(words, hashes, strict=True):
        assert bits(weights.load(found)) == bits(word)


def test_storing_the_same_again_adds_no_bytes_whatever_the_preset(weights: Weights) -> None:
    tensor = drawn(100, 100)
    found = weights.store(tensor)
    before = weights.get_storage_info()
    for preset in LOSSLESS:
        assert weights.store(tensor.clone(), preset=preset) == found
    assert weights.get_storage_info() == before
    assert (before.weights, before.objects) == (1, 1)


def test_dtype_and_shape_belong_to_what_is_hashed(weights: Weights) -> None:
    zeros = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.zeros(0), torch.zeros(0, 1)]
    assert len({weights.store(each) for each in zeros}) == len(zeros)


def test_a_hash_is_that_of_other_databases_and_does_not_come_from_the_values_alone(weights: Weights) -> None:
    tensor = drawn(10)
    with TensorStorage(None) as other:
        assert other.weights.store(tensor, name="x", preset="none") == weights.store(tensor)
    assert weights.store(tensor) != blake3(bits(tensor)).hexdigest()


def test_a_lossy_preset_has_the_hash_of_what_load_returns(weights: Weights) -> None:
    tensor = drawn(64, 64)
    exact, lossy = weights.store(tensor), weights.store(tensor, preset="maximum")
    assert exact != lossy
    loaded = weights.load(lossy)
    assert not loaded.equal(tensor)
    assert weights.store(tensor, preset="maximum") == lossy
    assert same(weights.load(lossy), loaded)
    info = weights.get_metadata(lossy)
    assert info.encoding.quantization == "int8"
    assert info.error.max_abs == pytest.approx((loaded - tensor).abs().max().item(), rel=1e-3)


def test_parameters_and_weight_values_are_taken(weights: Weights) -> None:
    layer = torch.nn.Linear(5, 4)
    found = weights.store(layer.weight, name="layer.weight")
    given_as = Weight(layer.weight, "other", "Linear", "net", {"a": 1})
    assert weights.store(given_as) == found
    assert weights.store(given_as, name="third") == found
    assert [label.name for label in weights.get_metadata(found).labels] == ["layer.weight", "other", "third"]
    assert same(weights.load(found), layer.weight.detach())


def test_what_training_changes_later_does_not_reach_what_is_stored(weights: Weights) -> None:
    tensor = drawn(2000, 1000)
    before = tensor.clone()
    found = weights.store(tensor, preset="none")
    tensor.zero_()
    assert same(weights.load(found), before)
    weights.load(found).zero_()
    assert same(weights.load(found), before)


def test_loading_into_a_tensor_or_a_parameter_or_a_part(weights: Weights) -> None:
    tensor = drawn(30, 20)
    found = weights.store(tensor)
    parameter = torch.nn.Parameter(torch.zeros(30, 20))
    assert weights.load(found, out=parameter) is parameter
    assert same(parameter.detach(), tensor)
    turned = torch.zeros(20, 30).T
    assert same(weights.load(found, out=turned), tensor)
    assert same(weights.load(found, index=(slice(3, 9, 2), 4)), tensor[3:9:2, 4])
    row = torch.zeros(20)
    assert weights.load(found, index=-1, out=row) is row
    assert same(row, tensor[-1])
    assert weights.load(found, device="cpu").device.type == "cpu"
    for wrong in (torch.zeros(30, 21), torch.zeros(30, 20).int(), [0.0]):
        with pytest.raises(InvalidInputError):
            weights.load(found, out=wrong)
        with pytest.raises(InvalidInputError):
            weights.load(found, out=wrong, index=...)
    with pytest.raises(InvalidInputError, match="device is 'nowhere'"):
        weights.load(found, device="nowhere")
    with pytest.raises(InvalidInputError, match="drop device="):
        weights.load(found, device="cpu", out=turned)
    with pytest.raises(IndexError):
        weights.load(found, index=30)


def test_the_first_digits_of_a_hash_do_if_they_are_unambiguous(weights: Weights) -> None:
    tensor = drawn(9)
    found = weights.store(tensor)
    for text in (found[:8], found[:9], found[:63], found.upper()):
        assert weights.exists(text)
        assert same(weights.load(text), tensor)
        assert weights.get_metadata(text).hash == found
    for wrong in (found[:7], "", found + "0", "g" * 64, f" {found[:10]}", None, 7, found.encode()):
        with pytest.raises(InvalidInputError, match="hexadecimal digits"):
            weights.load(wrong)
        with pytest.raises(InvalidInputError, match="hexadecimal digits"):
            weights.exists(wrong)
    assert same(weights.load_batch([found[:12], found])[found[:12]], tensor)


def test_an_ambiguous_beginning_names_the_hashes(db: TensorStorage) -> None:
    hashes = [db.weights.store(drawn(3, seed=seed)) for seed in range(3)]
    alike = ["ab" * 31 + "00", "ab" * 31 + "01"]
    with db._db.catalog.write("forging ids") as con:
        for old, new in zip(hashes, alike, strict=False):
            con.execute(
                "UPDATE tensordb.weights SET content_id = ? WHERE content_id = ?",
                [bytes.fromhex(new), bytes.fromhex(old)],
            )
    with pytest.raises(InvalidInputError, match=f"begins 2 hashes.*{alike[0]}, {alike[1]}"):
        db.weights.load("abababab")
    assert same(db.weights.load(alike[1]), drawn(3, seed=1))


def test_a_hash_that_nothing_has_is_said(weights: Weights) -> None:
    nothing = "0" * 64
    assert not weights.exists(nothing)
    for ask in (weights.load, weights.get_metadata, weights.delete, weights.delete_delta, weights.load_delta):
        with pytest.raises(WeightNotFoundError, match="0000"):
            ask(nothing)
    with pytest.raises(KeyError):
        weights.load_batch([nothing])


def test_a_deleted_weight_is_gone_and_can_be_stored_again(db: TensorStorage) -> None:
    tensor = drawn(100, 100)
    found = db.weights.store(tensor, name="a", metadata={"n": 1})
    db.weights.delete(found[:10])
    assert not db.weights.exists(found)
    with pytest.raises(WeightNotFoundError):
        db.weights.delete(found)
    assert db.weights.get_storage_info().objects == 0
    assert db.weights.store(tensor) == found
    assert db.weights.get_metadata(found).labels == ()
    with db.transaction():
        db.weights.delete(found)
        assert db.weights.store(tensor, name="again") == found
        assert same(db.weights.load(found), tensor)
    assert db.weights.get_metadata(found).name == "again"


def test_a_transaction_that_fails_stores_nothing(db: TensorStorage) -> None:
    found = []

    def fail() -> None:
        with db.transaction():
            found.append(db.weights.store(drawn(10)))
            assert db.weights.exists(found[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not db.weights.exists(found[0])
    assert db.maintenance.verify().ok


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ([1.0], "torch.as_tensor"),
        (None, "torch.as_tensor"),
        (torch.zeros(2, device="meta"), "meta tensor"),
        (torch.eye(3).to_sparse(), "to_dense"),
        (Weight("text"), "torch.as_tensor"),
    ],
    ids=str,
)
def test_what_cannot_be_stored_is_refused_with_a_remedy(weights: Weights, tensor: object, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        weights.store(tensor)
    assert weights.list_weights() == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": 3},
        {"name": "a\0b"},
        {"layer_type": b"Linear"},
        {"model_name": "\ud800"},
        {"metadata": [1]},
        {"metadata": {"a": print}},
        {"metadata": {1: 2}},
    ],
    ids=str,
)
def test_labels_that_cannot_be_stored_are_refused(weights: Weights, arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        weights.store(torch.ones(3), **arguments)
    assert weights.list_weights() == []


def test_an_unknown_preset_is_refused(weights: Weights) -> None:
    with pytest.raises(UnknownPresetError):
        weights.store(torch.ones(3), preset="smallest")
    with pytest.raises(UnknownPresetError):
        weights.store(torch.ones(3), preset=7)


def test_the_storage_decides_where_no_preset_is_given(db: TensorStorage) -> None:
    db.set_compression_preset("balanced")
    assert db.weights.get_metadata(db.weights.store(drawn(50, 50))).encoding.quantization == "fp16"


def test_stored_bytes_and_ratio_count_everything(weights: Weights) -> None:
    found = weights.get_metadata(weights.store(torch.zeros(1000, 10)))
    assert (found.nbytes, found.shape, found.dtype) == (40_000, (1000, 10), "float32")
    assert 0 < found.stored_nbytes < 1000
    assert found.ratio == found.nbytes / found.stored_nbytes
    assert found.encoding.stored_nbytes == found.stored_nbytes
    empty = weights.get_metadata(weights.store(torch.zeros(0)))
    assert (empty.nbytes, empty.ratio) == (0, 1.0)
    assert math.isinf(empty.error.snr_db)
