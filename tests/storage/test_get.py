"""get_tensor_by_id and get_many: one record, a part of one, many in the order asked for."""

import copy
import pickle

import numpy as np
import pytest
import torch

from tensordb import (
    AlreadyExistsError,
    DatasetNotFoundError,
    InvalidInputError,
    NotFoundError,
    TensorNotFoundError,
    TensorStorage,
)

from .tensors import same, sample

INDICES = [
    0,
    -1,
    slice(None),
    slice(2, 5),
    slice(None, None, -1),
    slice(None, None, 3),
    slice(5, 2),
    ...,
    (),
    (1, 2),
    (..., 0),
    (slice(1, 4), -1),
    (0, slice(None), 1),
    (slice(None), slice(1, 3), slice(None, None, -1)),
    (0, 0, 0),
]


@pytest.mark.parametrize("preset", ["none", "lossless", "int8_only"])
@pytest.mark.parametrize("paged", [False, True])
def test_an_index_gives_what_indexing_the_whole_tensor_gives(data: TensorStorage, preset: str, paged: bool) -> None:
    data.set_compression_preset(preset)
    tensors = torch.randn(3, 6, 5, 4) if paged else torch.randn(1, 60, 50, 40)
    ids = data.insert_many("data", tensors)
    whole = data.get_tensor_by_id("data", ids[-1]).tensor
    for index in INDICES:
        part = data.get_tensor_by_id("data", ids[-1], index=index).tensor
        expected = torch.from_numpy(np.asarray(whole.numpy()[index]).copy())  # torch itself has no negative steps
        assert same(part, expected), index


def test_an_index_on_every_dtype(data: TensorStorage) -> None:
    for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.bool, torch.uint16, torch.int64):
        tensor = sample(dtype, 300, 7)
        record_id = data.insert("data", tensor)
        assert same(data.get_tensor_by_id("data", record_id, index=(slice(10, 20), 3)).tensor, tensor[10:20, 3])


def test_an_index_out_of_range_or_of_another_kind_is_an_error(data: TensorStorage) -> None:
    record_ids = [data.insert("data", torch.zeros(3, 4)), data.insert_many("data", torch.zeros(3, 3, 4))[1]]
    for record_id in record_ids:
        for index in (3, -4, (0, 4), (0, 0, 0)):
            with pytest.raises(IndexError):
                data.get_tensor_by_id("data", record_id, index=index)
        for index in ("a", 1.5, True, [0, 1], (..., ...), slice("a", None), slice(None, None, 0)):
            with pytest.raises(InvalidInputError):
                data.get_tensor_by_id("data", record_id, index=index)


def test_an_index_into_a_0d_tensor(data: TensorStorage) -> None:
    record_id = data.insert("data", torch.tensor(5.0))
    assert data.get_tensor_by_id("data", record_id, index=...).tensor.item() == 5.0
    with pytest.raises(IndexError):
        data.get_tensor_by_id("data", record_id, index=0)


@pytest.mark.parametrize("paged", [False, True])
def test_out_is_filled_and_becomes_the_record_s_tensor(data: TensorStorage, paged: bool) -> None:
    stack = torch.randn(3, 700, 30) if not paged else torch.randn(3, 7, 3)
    record_id = data.insert_many("data", stack)[2] if paged else data.insert("data", stack[2])
    for out in (torch.empty_like(stack[2]), torch.empty(*stack[2].shape[::-1]).t()):
        record = data.get_tensor_by_id("data", record_id, out=out)
        assert record.tensor is out
        assert same(out, stack[2])
    part = torch.empty(stack.shape[2])
    assert data.get_tensor_by_id("data", record_id, index=1, out=part).tensor is part
    assert same(part, stack[2][1])


@pytest.mark.parametrize("paged", [False, True])
def test_an_out_that_does_not_fit_is_refused_and_left_as_it_was(data: TensorStorage, paged: bool) -> None:
    stack = torch.ones(2, 6)
    record_id = data.insert_many("data", stack)[0] if paged else data.insert("data", stack[0])
    for out in (
        torch.zeros(5),
        torch.zeros(7),
        torch.zeros(2, 3),
        torch.zeros(6, dtype=torch.float64),
        torch.zeros(6, dtype=torch.int32),
        torch.zeros(()),
    ):
        with pytest.raises(InvalidInputError, match="out"):
            data.get_tensor_by_id("data", record_id, out=out)
        assert not out.any()
        with pytest.raises(InvalidInputError, match="out"):
            data.get_tensor_by_id("data", record_id, index=slice(0, 3), out=out[:1] if out.ndim else out)
    with pytest.raises(InvalidInputError):
        data.get_tensor_by_id("data", record_id, out=[0.0] * 6)  # type: ignore[arg-type]


def test_a_parameter_may_be_filled(data: TensorStorage) -> None:
    record_id = data.insert("data", torch.arange(6.0))
    parameter = torch.nn.Parameter(torch.zeros(6))
    with torch.no_grad():
        data.get_tensor_by_id("data", record_id, out=parameter)
    assert parameter.tolist() == [0, 1, 2, 3, 4, 5]


def test_device_places_the_tensor(data: TensorStorage) -> None:
    record_id = data.insert("data", torch.arange(6.0))
    assert data.get_tensor_by_id("data", record_id, device="cpu").tensor.device.type == "cpu"
    assert data.get_tensor_by_id("data", record_id, device=torch.device("meta")).tensor.device.type == "meta"


@pytest.mark.parametrize("preset", ["none", "lossless"])
@pytest.mark.parametrize("size", [6, 100_000])
def test_changing_a_returned_tensor_changes_nothing_stored(data: TensorStorage, preset: str, size: int) -> None:
    data.set_compression_preset(preset)
    stack = torch.randn(3, size)
    ids = [data.insert("data", stack[0]), *data.insert_many("data", stack[1:])]
    for _ in range(2):
        for record in (
            *(data.get_tensor_by_id("data", each) for each in ids),
            *data.get_many("data", ids + ids),
            *data.query("data"),
            *data.scan("data"),
            *data.sample_dataset("data", 3),
            *data.get_records_paginated("data"),
        ):
            assert same(record.tensor, stack[ids.index(record.id)])
            record.tensor.fill_(7)
    for tensor in data.get_dataset("data"):
        tensor.fill_(7)
    assert data.verify().ok


def test_records_of_one_call_do_not_share_memory(data: TensorStorage) -> None:
    ids = data.insert_many("data", torch.randn(4, 6))
    first, second, again, *_ = data.get_many("data", [ids[0], ids[1], ids[0]])
    first.tensor.zero_()
    assert again.tensor.any()
    assert second.tensor.any()


def test_unknown_ids_and_datasets_are_named(data: TensorStorage) -> None:
    for error in (TensorNotFoundError, NotFoundError, KeyError, ValueError):
        with pytest.raises(error) as caught:
            data.get_tensor_by_id("data", "nope")
        assert "'nope'" in str(caught.value)
        assert "'data'" in str(caught.value)
    known = data.insert("data", torch.zeros(1))
    with pytest.raises(TensorNotFoundError, match="'gone'"):
        data.get_many("data", [known, "gone"])
    with pytest.raises(DatasetNotFoundError, match="'other'"):
        data.get_tensor_by_id("other", known)
    with pytest.raises(DatasetNotFoundError, match="'other'"):
        data.get_many("other", [])
    for record_id in (None, 5, b"x", "\ud800"):
        with pytest.raises(InvalidInputError):
            data.get_tensor_by_id("data", record_id)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="list"):
        data.get_many("data", known)


def test_a_record_of_another_dataset_is_not_found(data: TensorStorage) -> None:
    data.create_dataset("other")
    record_id = data.insert("other", torch.zeros(1))
    with pytest.raises(TensorNotFoundError):
        data.get_tensor_by_id("data", record_id)


def test_get_many_keeps_the_order_and_repeats(data: TensorStorage) -> None:
    ids = [
        *data.insert_many("data", torch.arange(10.0).reshape(10, 1)),
        *data.insert_many("data", [torch.full((50_000,), float(n)) for n in range(10, 14)]),
        *(data.insert("data", torch.tensor([float(n)]), record_id=f"own{n}") for n in range(14, 18)),
    ]
    order = [17, 3, 3, 12, 0, 15, 9, 12, 1, 10, 17]
    records = data.get_many("data", [ids[position] for position in order])
    assert [record.id for record in records] == [ids[position] for position in order]
    assert [record.tensor.flatten()[0].item() for record in records] == order
    assert data.get_many("data", []) == []
    assert [record.id for record in data.get_many("data", tuple(ids[:2]))] == ids[:2]


def test_get_dataset_is_in_insertion_order(data: TensorStorage) -> None:
    for step in (5, 3, 9, 1):
        data.insert("data", torch.tensor(step), {"step": step}, record_id=f"{9 - step}")
    data.insert_many("data", torch.tensor([[8], [2]]), [{"step": 8}, {"step": 2}])
    assert [int(tensor) for tensor in data.get_dataset("data")] == [5, 3, 9, 1, 8, 2]
    records = data.get_dataset_with_metadata("data")
    assert [record.metadata["step"] for record in records] == [5, 3, 9, 1, 8, 2]
    data.update_tensor_metadata("data", "6", {"step": 30, "long": "x" * 1000})
    assert [int(tensor) for tensor in data.get_dataset("data")] == [5, 3, 9, 1, 8, 2]
    data.create_dataset("empty")
    assert data.get_dataset("empty") == []
    assert data.get_dataset_with_metadata("empty") == []


def test_a_generated_id_may_be_given_again_as_one_s_own(data: TensorStorage) -> None:
    first = data.insert("data", torch.tensor([1.0]))
    for call in (
        lambda: data.insert("data", torch.tensor([2.0]), record_id=first),
        lambda: data.insert_many("data", torch.zeros(2, 1), record_ids=["x", first]),
    ):
        with pytest.raises(AlreadyExistsError, match=first):
            call()
    data.delete_tensor("data", first)
    with pytest.raises(TensorNotFoundError):
        data.get_tensor_by_id("data", first)
    data.insert("data", torch.tensor([3.0]), record_id=first)
    assert data.get_tensor_by_id("data", first).tensor.item() == 3.0
    assert data.count("data", "record_id = ?", params=[first]) == 1
    assert data.sql("SELECT record_id FROM data").column("record_id").to_pylist() == [first]
    with pytest.raises(AlreadyExistsError, match=first):
        data.insert("data", torch.tensor([4.0]), record_id=first)
    data.delete_tensor("data", first)
    assert data.count("data") == 0


def test_the_id_of_a_generated_record_is_the_same_everywhere(data: TensorStorage) -> None:
    ids = [
        data.insert("data", torch.zeros(1)),
        *data.insert_many("data", torch.zeros(3, 1)),
        data.insert("data", torch.ones(1)),
    ]
    assert [record.id for record in data.query("data")] == ids
    assert [record.id for record in data.scan("data", order_by="record_id")] == sorted(ids)
    assert data.sql("SELECT record_id FROM data ORDER BY created_at, record_id").column("record_id").to_pylist() == ids
    assert [record.id for record in data.query("data", "record_id = ?", params=[ids[2]])] == [ids[2]]


@pytest.mark.parametrize("own_ids", [False, True])
def test_looking_up_by_id_many_times_sees_every_change(data: TensorStorage, own_ids: bool) -> None:
    names = [f"own{n}" for n in range(40)] if own_ids else None
    ids = data.insert_many("data", torch.arange(40.0).reshape(40, 1), [{"n": n} for n in range(40)], record_ids=names)

    def check(expected: dict[str, float]) -> None:
        for _ in range(2):
            for record_id in ids:
                if record_id in expected:
                    assert data.get_tensor_by_id("data", record_id).metadata["n"] == expected[record_id]
                else:
                    with pytest.raises(TensorNotFoundError):
                        data.get_tensor_by_id("data", record_id)
            records = data.get_many("data", list(expected))
            assert {record.id: record.metadata["n"] for record in records} == expected

    now: dict[str, float] = {record_id: n for n, record_id in enumerate(ids)}
    check(now)
    data.update_tensor_metadata("data", ids[7], {"n": 700.5})
    now[ids[7]] = 700.5
    check(now)
    data.delete_tensor("data", ids[3])
    del now[ids[3]]
    check(now)
    with pytest.raises(KeyboardInterrupt), data.transaction():  # noqa: PT012
        data.update_tensor_metadata("data", ids[8], {"n": -1})
        data.delete_tensor("data", ids[9])
        check({**{k: v for k, v in now.items() if k != ids[9]}, ids[8]: -1})
        raise KeyboardInterrupt
    check(now)
    ids.append(data.insert("data", torch.zeros(1), {"n": 40}))
    now[ids[-1]] = 40
    check(now)
    data.delete_where("data", "metadata.n > 30")
    check({k: v for k, v in now.items() if v <= 30})


def test_records_pickle_and_copy(runs: TensorStorage) -> None:
    record = runs.get_tensor_by_id("data", "r3")
    for copied in (pickle.loads(pickle.dumps(record)), copy.deepcopy(record)):
        assert same(copied.tensor, record.tensor)
        assert copied.metadata == record.metadata
        assert copied.encoding == record.encoding
        assert copied.created_at == record.created_at
