"""insert_many: stacks and iterables of any length in one atomic commit."""

import datetime as dt
import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from tensordb import AlreadyExistsError, InvalidInputError, SchemaValidationError, TensorStorage

from .tensors import DTYPES, same, sample


def stored(db: TensorStorage) -> list[torch.Tensor]:
    return db.get_dataset("data")


def test_a_stack_of_every_dtype_comes_back_row_by_row(data: TensorStorage) -> None:
    for dtype in DTYPES:
        stack = sample(dtype, 5, 3, 2)
        ids = data.insert_many("data", stack)
        for rows in ([record.tensor for record in data.get_many("data", ids)], stored(data)):
            assert all(same(row, expected) for row, expected in zip(rows, stack.unbind(), strict=True)), dtype
        assert same(data.get_tensor_by_id("data", ids[3]).tensor, stack[3])
        data.delete_where("data", "true")


def test_lists_of_every_dtype_come_back_in_order(data: TensorStorage) -> None:
    tensors = [sample(dtype, 3, 2, seed=seed) for seed in range(3) for dtype in DTYPES]
    ids = data.insert_many("data", tensors)
    assert [record.id for record in data.get_dataset_with_metadata("data")] == ids
    assert all(same(row, expected) for row, expected in zip(stored(data), tensors, strict=True))


@pytest.mark.parametrize("shape", [(6,), (6, 0), (0, 3), (1, 4), (3, 200_000), (2, 3, 4, 5)], ids=str)
def test_stacks_of_every_shape(data: TensorStorage, shape: tuple[int, ...]) -> None:
    stack = torch.randn(shape)
    assert len(data.insert_many("data", stack)) == shape[0]
    assert all(same(row, expected) for row, expected in zip(stored(data), stack.unbind(), strict=True))


def test_non_contiguous_stacks_and_stacks_in_a_graph(data: TensorStorage) -> None:
    base = torch.randn(6, 8, requires_grad=True)
    for stack in (base.t(), base[::2], base * 2, base[:1].expand(4, -1)):
        data.insert_many("data", stack)
        rows = stored(data)
        assert all(same(row, expected) for row, expected in zip(rows, stack.unbind(), strict=True))
        assert not any(row.requires_grad for row in rows)
        data.delete_where("data", "true")


def test_a_0d_stack_is_refused(data: TensorStorage) -> None:
    with pytest.raises(InvalidInputError, match="0-d"):
        data.insert_many("data", torch.tensor(1.0))


def test_more_records_than_a_page_holds(data: TensorStorage) -> None:
    stack = torch.arange(70_000, dtype=torch.int32).reshape(-1, 1).expand(-1, 40).contiguous()
    ids = data.insert_many("data", stack, ({"n": n} for n in range(len(stack))))
    assert data.get_compression_stats("data").objects > 1
    assert data.count("data") == 70_000
    for position in (0, 1, 26_213, 26_214, 26_215, 52_428, 69_999):
        record = data.get_tensor_by_id("data", ids[position])
        assert record.metadata == {"n": position}
        assert same(record.tensor, stack[position])
    assert [record.tensor[0].item() for record in data.get_many("data", ids[::1000])] == list(range(0, 70_000, 1000))


def test_a_generator_may_reuse_its_buffer(data: TensorStorage) -> None:
    for size in (4, 100_000):

        def reusing(size: int = size) -> Iterator[torch.Tensor]:
            buffer = torch.empty(size)
            for step in range(12):
                yield buffer.fill_(step)
            buffer.fill_(-1)

        data.insert_many("data", reusing())
        assert [tensor.unique().tolist() for tensor in stored(data)] == [[step] for step in range(12)]
        data.delete_where("data", "true")


def test_changing_what_was_given_later_does_not_change_what_is_stored(data: TensorStorage) -> None:
    data.set_compression_preset("none")
    for size in (4, 100_000):
        for given in (torch.ones(3, size), [torch.ones(size) for _ in range(3)]):
            ids = data.insert_many("data", given)
            for tensor in given:
                tensor.zero_()
            assert all(record.tensor.min() == 1 for record in data.get_many("data", ids))


def test_the_same_tensor_many_times_is_stored_once_and_each_record_is_its_own(data: TensorStorage) -> None:
    tensor = torch.randn(50_000)
    ids = data.insert_many("data", [tensor] * 4)
    assert data.get_compression_stats("data").objects == 1
    for record_id in ids[:3]:
        data.delete_tensor("data", record_id)
    assert same(data.get_tensor_by_id("data", ids[3]).tensor, tensor)
    data.delete_tensor("data", ids[3])
    assert data.get_compression_stats("data").objects == 0


def test_deleting_some_rows_of_a_page_keeps_the_others(data: TensorStorage) -> None:
    stack = torch.randn(100, 10)
    ids = data.insert_many("data", stack)
    data.delete_where("data", "list_contains($gone, record_id)", params={"gone": ids[::2]})
    data.maintenance.compact(min_dead=0.0)
    assert all(same(row, expected) for row, expected in zip(stored(data), stack[1::2].unbind(), strict=True))


def test_mixed_specs_keep_their_order(data: TensorStorage) -> None:
    tensors = [torch.full((n % 5, 2), n, dtype=[torch.float32, torch.int16][n % 2]) for n in range(50)]
    tensors.insert(7, torch.randn(60_000))
    data.insert_many("data", iter(tensors), [{"n": n} for n in range(51)])
    assert all(same(row, expected) for row, expected in zip(stored(data), tensors, strict=True))
    assert [record.metadata["n"] for record in data.query("data")] == list(range(51))


def test_an_iterable_is_consumed_in_bounded_memory(tmp_path: Path) -> None:
    arrays: list[weakref.ref[np.ndarray]] = []
    most = 0

    def passing() -> Iterator[torch.Tensor]:
        nonlocal most
        for _ in range(40):
            array = np.random.default_rng().standard_normal(1 << 18)
            arrays.append(weakref.ref(array))
            tensor = torch.from_numpy(array)
            del array
            yield tensor
            del tensor
            tracked = tracemalloc.get_traced_memory()[0]
            most = max(most, tracked)

    with TensorStorage(tmp_path / "db") as db:
        db.create_dataset("data")
        db.insert("data", torch.zeros(1))
        tracemalloc.start()
        try:
            db.insert_many("data", passing())
        finally:
            tracemalloc.stop()
        assert db.count("data") == 41
    assert most < 40 << 20, "80 MB passed through; what was written must be let go"
    assert not any(array() is not None for array in arrays)


def test_empty_input_inserts_nothing(data: TensorStorage) -> None:
    for nothing in ([], torch.empty(0, 3), iter(())):
        assert data.insert_many("data", nothing) == []
    assert data.insert_many("data", [], [], record_ids=[]) == []
    assert data.count("data") == 0


def test_what_is_no_sequence_of_tensors_is_refused_with_its_position(data: TensorStorage) -> None:
    for source, named in (
        ({"a": torch.zeros(1)}, "dict"),
        ("text", "str"),
        (5, "int"),
        (None, "NoneType"),
        ([torch.zeros(1), [1.0]], r"tensors\[1\]"),
        ([torch.zeros(1), np.array(["a"])], r"tensors\[1\]"),
    ):
        with pytest.raises(InvalidInputError, match=named):
            data.insert_many("data", source)
    assert data.count("data") == 0


@pytest.mark.parametrize("kind", ["list", "generator", "arrow", "pandas"])
def test_metadata_in_every_form(data: TensorStorage, kind: str) -> None:
    rows = [{"n": n, "x": n / 2, "t": f"t{n}", "ok": n > 1, "when": dt.datetime(2024, 1, 1 + n)} for n in range(4)]
    metadata = {
        "list": lambda: rows,
        "generator": lambda: (row for row in rows),
        "arrow": lambda: pa.Table.from_pylist(rows),
        "pandas": lambda: pd.DataFrame(rows),
    }[kind]()
    data.insert_many("data", torch.zeros(4, 2), metadata)
    assert [record.metadata for record in data.query("data")] == rows
    assert [type(value) for value in data.query("data")[0].metadata.values()] == [int, float, str, bool, dt.datetime]
    assert data.count("data", "metadata.n >= 2 AND metadata.ok") == 2


def test_a_data_frame_with_an_index_missing_values_and_numpy_scalars(data: TensorStorage) -> None:
    frame = pd.DataFrame({"x": [1.5, None], "s": ["a", None], "i": np.array([1, 2], np.int8)}, index=["p", "q"])
    data.insert_many("data", torch.zeros(2, 1), frame)
    frame.index.name = "named"
    data.insert_many("data", torch.zeros(2, 1), frame)
    expected = [{"x": 1.5, "s": "a", "i": 1}, {"x": None, "s": None, "i": 2}]
    assert [record.metadata for record in data.query("data")] == expected * 2


def test_a_data_frame_that_cannot_be_stored_is_an_error_of_ours(data: TensorStorage) -> None:
    for frame in (pd.DataFrame({"m": [1, "a"]}), pd.DataFrame({"m": [b"x", b"y"]}), pd.DataFrame({"m": [1j, 2j]})):
        with pytest.raises(InvalidInputError, match="m"):
            data.insert_many("data", torch.zeros(2, 1), frame)
    assert data.count("data") == 0


def test_rows_without_metadata_may_be_none(data: TensorStorage) -> None:
    data.insert_many("data", torch.zeros(3, 1), [None, {"a": 1}, {}])
    assert [record.metadata for record in data.query("data")] == [{}, {"a": 1}, {}]


@pytest.mark.parametrize("sized", [True, False])
def test_lengths_that_differ_store_nothing(data: TensorStorage, sized: bool) -> None:
    def given(values: list) -> object:
        return values if sized else iter(values)

    tensors = [torch.randn(60_000) for _ in range(3)]
    for metadata, ids in (
        ([{"a": 1}] * 2, None),
        ([{"a": 1}] * 4, None),
        ([], None),
        (None, ["a", "b"]),
        (None, list("abcd")),
        ([{"a": 1}] * 3, []),
    ):
        with pytest.raises(InvalidInputError, match="must match"):
            data.insert_many("data", given(tensors), None if metadata is None else given(metadata), record_ids=ids)
    assert data.count("data") == 0
    assert data.get_compression_stats().objects == 0


def test_ids_given_are_kept_in_order(data: TensorStorage) -> None:
    ids = [f"id{n}" for n in range(5)]
    assert data.insert_many("data", torch.arange(5.0).reshape(5, 1), record_ids=ids) == ids
    assert [record.tensor.item() for record in data.get_many("data", ids)] == [0, 1, 2, 3, 4]
    assert data.insert_many("data", torch.zeros(2, 1), record_ids=("t", "u")) == ["t", "u"]


def test_ids_that_are_taken_or_come_twice_store_nothing(data: TensorStorage) -> None:
    data.insert("data", torch.zeros(1), record_id="b")
    for ids, culprit in ((["a", "b", "c"], "b"), (["x", "y", "x"], "x"), (["b"], "b")):
        with pytest.raises(AlreadyExistsError, match=f"'{culprit}'"):
            data.insert_many("data", torch.zeros(len(ids), 1), record_ids=ids)
    for ids in ("abc", ["a", 5, "c"], ["a", None, "c"]):
        with pytest.raises(InvalidInputError):
            data.insert_many("data", torch.zeros(3, 1), record_ids=ids)  # type: ignore[arg-type]
    assert [record.id for record in data.query("data")] == ["b"]


def test_an_error_in_the_middle_stores_nothing(data: TensorStorage) -> None:
    class OwnError(Exception):
        pass

    def failing() -> Iterator[torch.Tensor]:
        for _ in range(30):
            yield torch.randn(60_000)
        raise OwnError

    with pytest.raises(OwnError):
        data.insert_many("data", failing())
    with pytest.raises(InvalidInputError, match=r"metadata\[2\]\.bad"):
        data.insert_many("data", torch.zeros(3, 1), [{"bad": 1}, {"bad": 2}, {"bad": object()}])
    data.create_dataset("strict", {"shape": [None, 2]})
    with pytest.raises(SchemaValidationError, match="shape"):
        data.insert_many("strict", [torch.zeros(1, 2), torch.zeros(2, 3)])
    assert data.count("data") == data.count("strict") == 0
    assert data.get_compression_stats().objects == 0


def test_a_scan_of_another_dataset_can_be_the_source(data: TensorStorage) -> None:
    data.insert_many("data", torch.arange(3000.0).reshape(-1, 1))
    data.create_dataset("copy")
    data.insert_many("copy", (record.tensor * 2 for record in data.scan("data")))
    assert [tensor.item() for tensor in data.get_dataset("copy")[:3]] == [0.0, 2.0, 4.0]
    with data.transaction():
        data.insert_many("data", (record.tensor for record in data.scan("copy")))
    assert data.count("data") == 6000


def test_a_progress_bar_is_shown_when_asked_for_and_nothing_otherwise(
    data: TensorStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    data.insert_many("data", torch.zeros(3, 1))
    assert capsys.readouterr() == ("", "")
    data.insert_many("data", torch.zeros(3, 1), progress=True)
    captured = capsys.readouterr()
    assert "3/3" in captured.out + captured.err


def test_sequence_like_metadata_of_many_layouts_keeps_each_document(data: TensorStorage) -> None:
    rows = [{"a": 1}, {"a": 1.0}, {"a": None}, {}, {"b": [1, 2]}, {"b": []}, {"a": "x", "c": {"d": [{"e": True}]}}]
    data.insert_many("data", torch.zeros(len(rows), 1), rows)
    returned = [record.metadata for record in data.query("data")]
    assert returned == rows
    assert [type(row["a"]) for row in returned[:2]] == [int, float]


@pytest.mark.parametrize("given", [False, True])
def test_many_records_get_ids_and_metadata_in_their_order(data: TensorStorage, given: bool) -> None:
    count = 12_000  # several pages, several columns of metadata, and ids enough to be made beside the rest
    plain = [{"number": number, "even": number % 2 == 0} for number in range(count)]
    awkward = {5_000: {"number": "text", "deep": {"a": [1, None]}}, 7_777: {}, 11_999: {"EVEN": 1.5}}
    metadata = [awkward.get(number, fields) for number, fields in enumerate(plain)]
    names = [f"record {number}" for number in range(count)] if given else None
    stack = torch.arange(count * 200, dtype=torch.float32).reshape(count, 200)
    ids = data.insert_many("data", stack, metadata, record_ids=names)
    assert len(set(ids)) == count
    assert names is None or ids == names
    for number in (0, 1, 4_999, 5_000, 7_777, 11_998, 11_999):
        record = data.get_tensor_by_id("data", ids[number])
        assert torch.equal(record.tensor, stack[number])
        assert record.metadata == metadata[number]
    assert [record.metadata for record in data.get_dataset_with_metadata("data")] == metadata
    mean = data.sql('SELECT stats.mean AS mean FROM "data" ORDER BY record_id').column("mean").to_pylist()
    assert sorted(mean) == [float(row.double().mean()) for row in stack]
