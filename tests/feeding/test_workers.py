"""Workers of a DataLoader, forked and spawned: each record once, the right tensors, and states that resume."""

import itertools
import pickle
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from tensordb import IntegrityError, TensorStorage, collate

from .conftest import COUNT, fields, rows

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # which torchdata calls
]
COLUMNS = ("tensor", "n", "text")


def seen(batches: Any) -> list[int]:
    """Return the numbers of the records, once each tensor was found to be the right one."""
    found: list[int] = []
    for tensor, number, text in batches:
        assert tensor.equal(rows()[number])
        assert list(text) == [f"t{n}" for n in number.tolist()]
        found += number.tolist()
    return found


@pytest.mark.parametrize(("method", "shuffle"), [("fork", True), ("fork", "batches"), ("spawn", True)])
def test_workers_share_a_stream_epoch_after_epoch(db: TensorStorage, method: str, shuffle: Any) -> None:
    data = db.dataset("d", columns=COLUMNS)
    stream = data.stream(shuffle=shuffle, seed=1, batch_size=16, buffer=100_000)
    options: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": method}
    loader: Any = DataLoader(stream, batch_size=None, persistent_workers=True, **options)
    orders = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)  # reaches workers that live on
        orders.append(seen(loader))
        assert sorted(orders[-1]) == list(range(COUNT))
        db.insert("d", torch.zeros(5000), {"n": -1})  # the parent writes while they live
    assert len(loader) == len(stream) == -(-COUNT // 16)
    assert orders[0] == orders[2] != orders[1]
    del loader


def test_workers_keep_the_order_of_the_dataset(shared: TensorStorage) -> None:
    stream = shared.dataset("d", columns=COLUMNS).stream(batch_size=16)
    loader: Any = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert seen(loader) == list(range(COUNT))


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_read_items_by_position(shared: TensorStorage, method: str, workers: int) -> None:
    loader: Any = DataLoader(
        shared.dataset("d", columns=COLUMNS),
        batch_size=50,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context=method,
        collate_fn=collate,
    )
    assert sorted(seen(loader)) == list(range(COUNT))


def test_a_stream_without_a_seed_is_drawn_anew_each_time_and_the_same_in_all_workers(shared: TensorStorage) -> None:
    stream = shared.dataset("d", columns=COLUMNS).stream(shuffle=True, batch_size=16)
    for persistent in (False, True):
        loader: Any = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=persistent)
        first, second = seen(loader), seen(loader)
        assert sorted(first) == sorted(second) == list(range(COUNT))
        assert first != second


def test_a_database_in_memory_feeds_forked_workers() -> None:
    with TensorStorage(None) as db:
        db.create_dataset("d")
        db.insert_many("d", rows(), fields(0, COUNT))
        stream = db.dataset("d", columns=COLUMNS).stream(shuffle=True, seed=0, batch_size=16)
        loader: Any = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="fork")
        assert sorted(seen(loader)) == list(range(COUNT))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for CUDA, which is not here")
def test_batches_can_be_pinned(shared: TensorStorage) -> None:
    stream = shared.dataset("d").stream(batch_size=50)
    loader: Any = DataLoader(stream, batch_size=None, num_workers=1, pin_memory=True)
    assert all(batch.is_pinned() for batch in loader)


def test_damage_found_in_a_worker_is_named_in_the_parent(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "data.tdb") as db:
        db.create_dataset("d")
        db.insert_many("d", rows(200), record_ids=[f"record-{n}" for n in range(200)])
        stream = db.dataset("d").stream(batch_size=10)
        (segment,) = (tmp_path / "data.tdb" / "segments").iterdir()
        content = bytearray(segment.read_bytes())
        content[len(content) // 2] ^= 1
        segment.write_bytes(content)
        with pytest.raises(IntegrityError, match=r"record 'record-\d+' of dataset 'd'"):
            list(DataLoader(stream, batch_size=None, num_workers=2))


@pytest.mark.parametrize(
    ("workers", "seed", "shuffle", "batch_size"),
    [
        *((0, *each) for each in itertools.product((None, 4), (True, "batches"), (16,))),
        (0, 4, True, None),
        (2, None, True, None),
        (2, 4, True, 16),
        (2, None, "batches", 16),
    ],
)
def test_a_stateful_loader_resumes_exactly(
    shared: TensorStorage, workers: int, seed: int | None, shuffle: Any, batch_size: int | None
) -> None:
    def made() -> Any:
        data = shared.dataset("d", columns="n")
        stream = data.stream(shuffle=shuffle, seed=seed, batch_size=batch_size, buffer=90_000)
        return StatefulDataLoader(stream, batch_size=None if batch_size else 16, num_workers=workers)

    loader = made()
    for at in (0, 13):
        whole, state = [], None
        for number, batch in enumerate(loader):
            whole.append(batch.tolist())
            if number == at:
                state = pickle.loads(pickle.dumps(loader.state_dict()))
        again = made()
        again.load_state_dict(state)
        assert [batch.tolist() for batch in again] == whole[at + 1 :]
        assert sorted(n for batch in again for n in batch.tolist()) == list(range(COUNT))  # the next epoch is whole
    ended = made()
    ended.load_state_dict(loader.state_dict())
    assert sorted(n for batch in ended for n in batch.tolist()) == list(range(COUNT))


def test_a_worker_opens_fast_and_without_duckdb(shared: TensorStorage, tmp_path: Path) -> None:
    stream = shared.dataset("d", columns=COLUMNS).stream(batch_size=16, shuffle=True, seed=0)
    (tmp_path / "stream").write_bytes(pickle.dumps(stream))
    script = """
        import pickle, sys, time
        import torch, pyarrow, tensordb
        import duckdb
        def refused(*_, **__):
            raise AssertionError("a worker opened the catalog")
        duckdb.connect = refused
        content = open(sys.argv[1], "rb").read()
        began = time.process_time()
        stream = pickle.loads(content)
        tensor, number, text = next(iter(stream))
        print(time.process_time() - began)
        assert len(tensor) == 16 and text[0] == f"t{number[0]}"
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "stream")]
    assert float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) < 0.5


@pytest.mark.slow
def test_a_million_records_pickle_small_and_resume_fast(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "data.tdb") as db:
        db.create_dataset("d")
        for _ in range(10):
            db.insert_many("d", torch.rand(100_000, 16))
        data = db.dataset("d")
        began = time.process_time()
        content = pickle.dumps(data)
        assert time.process_time() - began < 0.5
        assert len(content) < 1 << 20
        stream = pickle.loads(content).stream(shuffle=True, seed=0, batch_size=256)
        state = {**iter(stream).state_dict(), "taken": 900_096}
        began = time.process_time()
        stream.load_state_dict(state)
        next(iter(stream))
        assert time.process_time() - began < 1.0
