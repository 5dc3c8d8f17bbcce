"""insert: any tensor, as it is at that moment, under an id."""

import datetime as dt
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from tensordb import (
    AlreadyExistsError,
    DatasetNotFoundError,
    InvalidInputError,
    TensorStorage,
    VerifyReport,
)

from .tensors import DTYPES, hardly_compressible, same, sample

SHAPES = [(), (0,), (1,), (3, 0, 2), (7,), (5, 4, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_dtype_in_every_kind_of_shape_comes_back_bit_for_bit(data: TensorStorage, shape: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        tensor = sample(dtype, *shape)
        assert same(data.get_tensor_by_id("data", data.insert("data", tensor)).tensor, tensor), dtype


@pytest.mark.parametrize("preset", ["none", "fast", "lossless", "archive"])
def test_lossless_presets_keep_every_bit_of_every_dtype(preset: str) -> None:
    with TensorStorage(None, compression_preset=preset) as db:
        db.create_dataset("data")
        for dtype in DTYPES:
            tensor = sample(dtype, 9001)
            assert same(db.get_tensor_by_id("data", db.insert("data", tensor)).tensor, tensor), dtype


def test_special_floats_survive(data: TensorStorage) -> None:
    words = [0x7FC00001, 0xFFC12345, 0x7F800001, 0x7F800000, 0xFF800000, 0x80000000, 0x00000001, 0x807FFFFF]
    tensor = torch.tensor(words, dtype=torch.uint32).view(torch.float32).repeat(50)
    assert same(data.get_tensor_by_id("data", data.insert("data", tensor)).tensor, tensor)


def test_non_contiguous_tensors_are_stored_by_their_values(data: TensorStorage) -> None:
    x = torch.arange(120.0).reshape(10, 12)
    for tensor in (x.t(), x[::2, 1::3], x[:, 0], x.flip(0), x[0].expand(5, -1), x.unfold(0, 3, 1), x[3]):
        assert same(data.get_tensor_by_id("data", data.insert("data", tensor)).tensor, tensor)


def test_conjugated_and_negated_views_are_stored_by_their_values(data: TensorStorage) -> None:
    tensor = torch.tensor([1 + 2j, 3 - 4j])
    assert same(
        data.get_tensor_by_id("data", data.insert("data", tensor.conj())).tensor, torch.tensor([1 - 2j, 3 + 4j])
    )
    negated = tensor.conj().imag
    assert negated.is_neg()
    assert same(data.get_tensor_by_id("data", data.insert("data", negated)).tensor, torch.tensor([-2.0, 4.0]))


def test_parameters_and_tensors_in_a_graph_come_back_as_plain_tensors(data: TensorStorage) -> None:
    parameter = torch.nn.Parameter(torch.randn(5))
    for tensor in (parameter, parameter * 2, torch.randn(3, requires_grad=True)):
        stored = data.get_tensor_by_id("data", data.insert("data", tensor)).tensor
        assert type(stored) is torch.Tensor
        assert not stored.requires_grad
        assert same(stored, tensor)
    assert parameter.grad is None


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize("preset", ["none", "lossless"])
def test_changing_a_tensor_later_does_not_change_what_is_stored(data: TensorStorage, size: int, preset: str) -> None:
    data.set_compression_preset(preset)
    tensor = torch.randn(size)
    before = tensor.clone()
    record_id = data.insert("data", tensor)
    tensor.zero_()
    assert same(data.get_tensor_by_id("data", record_id).tensor, before)


def test_changing_a_tensor_inside_a_transaction_does_not_change_what_is_stored(data: TensorStorage) -> None:
    tensor = torch.zeros(5000)
    with data.transaction():
        ids = []
        for step in range(3):
            tensor.fill_(step)
            ids.append(data.insert("data", tensor))
    assert [record.tensor[0].item() for record in data.get_many("data", ids)] == [0.0, 1.0, 2.0]


def test_changing_metadata_later_does_not_change_what_is_stored(data: TensorStorage) -> None:
    metadata = {"tags": ["a"], "nested": {"x": 1}}
    record_id = data.insert("data", torch.zeros(1), metadata)
    metadata["tags"].append("b")
    metadata["nested"]["x"] = 2
    returned = data.get_tensor_by_id("data", record_id).metadata
    assert returned == {"tags": ["a"], "nested": {"x": 1}}
    returned["tags"].append("c")
    assert data.get_tensor_by_id("data", record_id).metadata == {"tags": ["a"], "nested": {"x": 1}}


def test_ids_are_unique_text_and_a_given_id_is_kept(data: TensorStorage) -> None:
    ids = [data.insert("data", torch.zeros(1)) for _ in range(20)]
    assert len(set(ids)) == 20
    assert all(isinstance(each, str) for each in ids)
    assert data.insert("data", torch.zeros(1), record_id="mine") == "mine"


def test_a_record_id_is_any_text(data: TensorStorage) -> None:
    ids = ["", "a b", "x'; DROP TABLE y; --", 'quo"te', "../up", "ü🙂", "x" * 5000, "a\0b", "A B"]
    for position, record_id in enumerate(ids):
        assert data.insert("data", torch.tensor([position]), record_id=record_id) == record_id
        assert data.get_tensor_by_id("data", record_id).tensor.item() == position
    assert [record.tensor.item() for record in data.get_many("data", ids)] == list(range(len(ids)))
    for record_id in ids[1:]:
        data.delete_tensor("data", record_id)
    assert [record.id for record in data.query("data")] == [""]


def test_an_id_that_is_taken_is_refused_and_its_record_is_kept(data: TensorStorage) -> None:
    data.insert("data", torch.tensor([1.0]), {"n": 1}, record_id="a")
    with pytest.raises(AlreadyExistsError, match="'a'"):
        data.insert("data", torch.tensor([2.0]), {"n": 2}, record_id="a")
    assert data.count("data") == 1
    assert data.get_tensor_by_id("data", "a").tensor.item() == 1.0
    data.create_dataset("other")
    assert data.insert("other", torch.zeros(1), record_id="a") == "a"


def test_an_id_that_is_no_text_is_refused(data: TensorStorage) -> None:
    for record_id in (5, b"a", ("a",), "\ud800"):
        with pytest.raises(InvalidInputError, match="record id"):
            data.insert("data", torch.zeros(1), record_id=record_id)  # type: ignore[arg-type]
    assert data.count("data") == 0


def test_what_cannot_be_stored_is_refused_with_a_remedy(data: TensorStorage) -> None:
    sparse, meta = torch.zeros(3).to_sparse(), torch.zeros(3, device="meta")
    for tensor, remedy in (
        ([1.0, 2.0], "as_tensor"),
        (np.zeros(3, object), "an array of object"),
        (np.ma.masked_array([1.0], [True]), "masked"),
        (None, "as_tensor"),
        (sparse, "to_dense"),
        (meta, "meta"),
    ):
        with pytest.raises(InvalidInputError, match=remedy):
            data.insert("data", tensor)  # type: ignore[arg-type]
    assert data.count("data") == 0


def test_an_unknown_dataset_is_named(data: TensorStorage) -> None:
    for name in ("nope", "", "Data"):
        with pytest.raises(DatasetNotFoundError) as caught:
            data.insert(name, torch.zeros(1))
        assert repr(name) in str(caught.value)
        assert "'data'" in str(caught.value)


def test_a_dataset_name_that_is_no_text_is_refused(data: TensorStorage) -> None:
    for name in (None, 5, b"data", ["data"], "\ud800"):
        with pytest.raises(InvalidInputError, match="dataset name"):
            data.insert(name, torch.zeros(1))  # type: ignore[arg-type]


def test_created_at_is_the_time_of_the_insert_in_utc(data: TensorStorage) -> None:
    before = dt.datetime.now(dt.UTC) - dt.timedelta(microseconds=1)
    record = data.get_tensor_by_id("data", data.insert("data", torch.zeros(1)))
    assert record.created_at.tzinfo is dt.UTC
    assert before <= record.created_at <= dt.datetime.now(dt.UTC)


def test_equal_tensors_share_one_object_and_deleting_one_keeps_the_other(data: TensorStorage) -> None:
    for size in (100, 100_000):
        tensor = torch.randn(size)
        first, second = data.insert("data", tensor), data.insert("data", tensor.clone())
        assert data.get_compression_stats("data").objects == 1
        data.delete_tensor("data", first)
        data.maintenance.gc()
        assert same(data.get_tensor_by_id("data", second).tensor, tensor)
        data.delete_tensor("data", second)
        assert data.get_compression_stats("data").objects == 0
        third = data.insert("data", tensor)
        assert same(data.get_tensor_by_id("data", third).tensor, tensor)
        data.delete_tensor("data", third)


@pytest.mark.parametrize("compacted", [False, True])
def test_however_often_a_small_tensor_comes_it_is_stored_once(tmp_path: Path, compacted: bool) -> None:
    tensor, ids = torch.randn(50), []
    for _ in range(3):
        with TensorStorage(tmp_path / "db") as db:
            if not ids:
                db.create_dataset("data")
            ids += [db.insert("data", tensor)]
            with pytest.raises(ZeroDivisionError), db.transaction():
                assert 1 / len(db.insert("data", tensor)[:0])
            with db.transaction():
                ids += [db.insert("data", tensor), db.insert("data", torch.zeros(3)), db.insert("data", tensor)]
            if compacted:
                db.maintenance.compact()
            assert db.get_compression_stats("data").objects == 2
            assert db.verify().ok
    with TensorStorage(tmp_path / "db") as db:
        db.delete_tensor("data", ids.pop())
        assert db.count("data") == len(ids) == 11
        for record in db.get_many("data", ids):
            assert same(record.tensor, torch.zeros(3) if len(record.tensor) == 3 else tensor)
        assert db.insert_many("data", [tensor, tensor[:3]])
        assert db.get_compression_stats("data").objects == 3
        db.delete_where("data", "true")
        assert db.get_compression_stats("data").objects == 0


def test_a_tensor_that_was_deleted_and_collected_can_be_inserted_again(data: TensorStorage) -> None:
    tensor = torch.randn(50_000)
    for _ in range(3):
        record_id = data.insert("data", tensor)
        assert same(data.get_tensor_by_id("data", record_id).tensor, tensor)
        data.delete_tensor("data", record_id)
        data.maintenance.gc()


def test_a_dataset_created_anew_follows_its_own_schema_and_config(data: TensorStorage) -> None:
    data.create_dataset("reborn", {"dtype": "float32"}, compression_preset="int8_only")
    data.insert("reborn", torch.randn(100))
    data.delete_dataset("reborn")
    data.create_dataset("reborn", compression_preset="fp16_only")
    data.insert("reborn", torch.arange(3))
    record = data.get_tensor_by_id("reborn", data.insert("reborn", torch.randn(100)))
    assert record.encoding.quantization == "fp16"


def test_inserting_from_many_threads_loses_nothing(data: TensorStorage) -> None:
    def work(start: int) -> None:
        for step in range(20):
            data.insert("data", torch.tensor([float(start + step)]), {"n": start + step})

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = data.query("data")
    assert sorted(record.metadata["n"] for record in found) == [s + i for s in (0, 100, 200) for i in range(20)]
    assert all(record.tensor.item() == record.metadata["n"] for record in found)


@pytest.mark.parametrize("kind", ["zeros", "sevens", "one in the middle", "bools"])
def test_a_large_tensor_whose_payload_is_small_comes_back_bit_for_bit(data: TensorStorage, kind: str) -> None:
    tensor = torch.zeros(1_500_000) if kind != "bools" else torch.zeros(6_000_000, dtype=torch.bool)
    if kind == "sevens":
        tensor.fill_(7)
    elif kind == "one in the middle":
        tensor[700_000] = 1
    for _ in range(3):  # an equal tensor finds what the one before it left
        assert same(data.get_tensor_by_id("data", data.insert("data", tensor)).tensor, tensor)
    assert data.verify().damaged == ()


def test_a_large_tensor_that_hardly_shrinks_is_stored_once_however_it_is_inserted(data: TensorStorage) -> None:
    tensor = hardly_compressible(1_200_000)
    ids = [data.insert("data", tensor), data.insert("data", tensor), *data.insert_many("data", [tensor])]
    assert all(same(data.get_tensor_by_id("data", each).tensor, tensor) for each in ids)
    assert data.get_tensor_by_id("data", ids[0]).encoding.compression == "none"
    report = data.verify()
    assert report == VerifyReport(3, 1, (), catalog_blocks=report.catalog_blocks)
