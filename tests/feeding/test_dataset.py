"""A map-style dataset: the right items by position, whatever happens to the database meanwhile."""

import datetime as dt
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from tensordb import IntegrityError, InvalidInputError, InvalidQueryError, TensorDataset, TensorStorage
from tensordb.errors import DatasetNotFoundError
from tensordb.tensors import byte_view, snapshot

from .conftest import COUNT, fill, rows


def test_items_are_the_tensors_in_insertion_order(shared: TensorStorage) -> None:
    data = shared.dataset("d")
    assert isinstance(data, TensorDataset)
    assert len(data) == COUNT
    made = rows()
    assert all(data[n].equal(made[n]) for n in range(0, COUNT, 37))
    assert data[-1].equal(made[-1])
    assert data[-COUNT].equal(made[0])
    for bad in (COUNT, -COUNT - 1):
        with pytest.raises(IndexError, match="of a dataset of 600"):
            data[bad]
    with pytest.raises(InvalidInputError, match="is no position"):
        data["1"]  # type: ignore[index]


def test_many_items_come_in_the_order_asked_for_and_repeat(shared: TensorStorage) -> None:
    wanted = [599, 0, 3, 3, -1, 84, 85, 400, 2]
    found = shared.dataset("d").__getitems__(wanted)
    assert all(tensor.equal(rows()[n]) for tensor, n in zip(found, wanted, strict=True))
    assert shared.dataset("d").__getitems__([]) == []


def test_columns_come_beside_the_tensor_in_the_order_asked_for(shared: TensorStorage) -> None:
    names = ("label", "tensor", "text", "deep.er", "metadata.n", "record_id", "created_at", "some", "deep")
    data = shared.dataset("d", columns=names)
    label, tensor, text, deeper, n, record_id, created, some, deep = data[597]
    assert (label, text, deeper, n, record_id, some) == (597 % 7, "t597", 298.5, 597, "mine-597", None)
    assert tensor.equal(rows()[597])
    assert deep == {"er": 298.5}
    assert isinstance(created, dt.datetime)
    assert created.tzinfo == dt.UTC
    assert shared.get_tensor_by_id("d", data[3][5]).metadata["n"] == 3
    assert shared.dataset("d", columns="label")[5] == 5
    assert shared.dataset("d", columns=["n"])[5] == (5,)


def test_a_condition_and_an_order_choose_the_records(shared: TensorStorage) -> None:
    data = shared.dataset("d", "metadata.label = ?", params=[3], columns="n", order_by="metadata.n DESC")
    assert [data[i] for i in range(len(data))] == [n for n in range(COUNT - 1, -1, -1) if n % 7 == 3]
    empty = shared.dataset("d", "metadata.n < 0")
    assert len(empty) == 0
    with pytest.raises(IndexError):
        empty[0]
    assert list(empty.stream(batch_size=4, shuffle=True)) == list(empty.stream()) == []
    assert "0 records" in repr(empty)


def test_transform_gets_the_item(shared: TensorStorage) -> None:
    data = shared.dataset("d", columns=("tensor", "n"), transform=lambda item: (item[0][0] * 2, -item[1]))
    assert data[7] == (14.0, -7)
    tensor, numbers = next(iter(data.stream(batch_size=4)))
    assert tensor.tolist() == [0, 2, 4, 6]
    assert numbers.tolist() == [0, -1, -2, -3]


def test_what_cannot_be_is_refused_with_a_remedy(shared: TensorStorage) -> None:
    with pytest.raises(InvalidInputError, match=r"no column 'lable'.*'label'"):
        shared.dataset("d", columns=("tensor", "lable"))
    with pytest.raises(DatasetNotFoundError):
        shared.dataset("nope")
    with pytest.raises(InvalidQueryError, match="nope"):
        shared.dataset("d", "metadata.nope = 1")
    for bad in ([], 3, ("tensor", 1), None):
        with pytest.raises(InvalidInputError, match="columns is"):
            shared.dataset("d", columns=bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="transform is 3"):
        shared.dataset("d", transform=3)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="where is"):
        shared.dataset("d", lambda tensor, fields: True)  # type: ignore[arg-type]


def test_records_of_every_dtype_and_shape_are_items(tmp_path: Path) -> None:
    kinds = [torch.bfloat16, torch.float8_e4m3fn, torch.complex32, torch.bool, torch.uint16, torch.int64]
    with TensorStorage(tmp_path / "db") as db:
        db.create_dataset("d")
        stored = []
        for dtype in kinds:
            for shape in ((), (0,), (3,), (2, 5)):
                raw = torch.randint(0, 2, (4, *shape, 8), dtype=torch.uint8)
                stack = raw.view(dtype)[..., 0] if dtype != torch.bool else raw.view(dtype)[..., 0].clone()
                db.insert_many("d", stack)
                stored += list(stack)
        data = db.dataset("d")
        for found in ([data[n] for n in range(len(data))], data.__getitems__(range(len(data))), list(data.stream())):
            assert [(each.dtype, each.shape) for each in found] == [(each.dtype, each.shape) for each in stored]
            assert all(_same(a, b) for a, b in zip(found, stored, strict=True))
        batch = next(iter(db.dataset("d", "dtype = 'complex32' AND len(shape) = 2").stream(batch_size=4, shuffle=True)))
        assert batch.dtype == torch.complex32
        assert batch.shape == (4, 2, 5)


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return bool((byte_view(snapshot(left)) == byte_view(snapshot(right))).all())


def test_a_snapshot_stays_as_it_was_through_writes_deletes_and_compaction(db: TensorStorage, tmp_path: Path) -> None:
    data = db.dataset("d", columns=("tensor", "n"))
    stream = data.stream(batch_size=50, shuffle=True, seed=0)
    begun = iter(stream)
    first = next(begun)
    db.insert("d", torch.zeros(9), {"n": -1})
    db.update_tensor_metadata("d", "mine-597", {"n": -5})
    db.delete_where("d", "metadata.n < 590")
    other = (
        "import sys, tensordb\n"
        "with tensordb.TensorStorage(sys.argv[1]) as db:\n"
        "    db.maintenance.compact(min_dead=0.0)\n"
        "    db.maintenance.gc()\n"
    )
    subprocess.run([sys.executable, "-c", other, str(tmp_path / "data.tdb")], check=True)
    db.maintenance.compact(min_dead=0.0)
    seen = [n for _, numbers in (first, *begun) for n in numbers.tolist()]
    assert sorted(seen) == list(range(COUNT))
    # One that maps the segments only now.
    fresh = pickle.loads(pickle.dumps(data))
    assert [fresh[n][1] for n in range(COUNT)] == list(range(COUNT))
    assert all(fresh[n][0].equal(rows()[n]) for n in range(0, COUNT, 11))


def test_segments_are_given_back_once_the_dataset_and_its_streams_are_gone(db: TensorStorage) -> None:
    data = db.dataset("d")
    stream = data.stream()
    db.delete_dataset("d")
    del data
    db.maintenance.gc()
    assert len(list(stream)) == COUNT
    del stream
    assert db.maintenance.gc().segments_removed == 1


def test_it_goes_on_when_the_storage_is_closed(db: TensorStorage) -> None:
    data = db.dataset("d")
    db.close()
    assert data[0].equal(rows()[0])
    assert sum(len(batch) for batch in data.stream(batch_size=64, shuffle=True)) == COUNT


def test_a_read_only_storage_feeds(filled: Path) -> None:
    with TensorStorage(filled, read_only=True) as db:
        assert db.dataset("d")[5].equal(rows()[5])


def test_a_database_in_memory_feeds_and_says_why_it_cannot_be_spawned() -> None:
    with TensorStorage(None) as db:
        data = fill(db).dataset("d", columns="tensor")
        assert data[3].equal(rows()[3])
        assert sum(len(batch) for batch in data.stream(batch_size=64, shuffle=True)) == COUNT
        db.delete_dataset("d")
        db.maintenance.compact()
        assert data[3].equal(rows()[3])
        with pytest.raises(InvalidInputError, match="in memory cannot be pickled"):
            pickle.dumps(data)


def test_a_loader_batches_it_with_its_own_collate_function(shared: TensorStorage) -> None:
    loader: Any = DataLoader(shared.dataset("d", columns=("tensor", "label", "text")), batch_size=100)
    for number, (tensor, label, text) in enumerate(loader):
        assert tensor.equal(rows()[number * 100 : number * 100 + 100])
        assert label.tolist() == [n % 7 for n in range(number * 100, number * 100 + 100)]
        assert text[0] == f"t{number * 100}"


def test_a_damaged_record_is_named_and_the_others_are_read(db: TensorStorage, tmp_path: Path) -> None:
    data = db.dataset("d")
    ids = db.dataset("d", columns="record_id")
    (segment,) = (tmp_path / "data.tdb" / "segments").iterdir()
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 0xFF
    segment.write_bytes(content)
    bad = [n for n in range(COUNT) if _is_damaged(data, n)]
    assert 0 < len(bad) < 30
    with pytest.raises(IntegrityError, match=f"record '{ids[bad[0]]}' of dataset 'd'"):
        data.__getitems__(range(COUNT))
    shuffles = [{"batch_size": 32, "shuffle": shuffle, "seed": 1} for shuffle in (True, "batches")]
    for options in ({"batch_size": 32}, *shuffles, {}):
        with pytest.raises(IntegrityError, match="of dataset 'd'") as caught:
            list(data.stream(**options))  # type: ignore[arg-type]
        assert any(f"'{ids[n]}'" in str(caught.value) for n in bad)
    with pytest.raises(IntegrityError, match="of dataset 'd'"):
        list(DataLoader(data, batch_size=64, num_workers=1))


def _is_damaged(data: Any, n: int) -> bool:
    try:
        data[n]
    except IntegrityError:
        return True
    return False
