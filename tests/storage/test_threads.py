"""One storage shared by threads that do everything at once."""

# ruff: noqa: PT012 - what is tested is the block

import threading
from collections.abc import Callable

import pytest
import torch

from tensordb import AlreadyExistsError, TensorNotFoundError, TensorStorage


def together(*works: Callable[[], None]) -> None:
    """Run each function in a thread of its own; raise the first error of any."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


def test_writers_and_readers_of_one_storage(data: TensorStorage) -> None:
    done = threading.Event()
    running = threading.Semaphore(0)

    def write(worker: int) -> None:
        try:
            for step in range(15):
                value = worker * 1000 + step
                data.insert("data", torch.full((10,), value), {"value": value})
                data.insert_many("data", torch.full((3, 5), value), [{"value": value}] * 3)
                with data.transaction():
                    large = data.insert("data", torch.full((40_000,), value), {"value": value})
                    data.update_tensor_metadata("data", large, {"updated": True}, merge=True)
        finally:
            running.release()

    def read() -> None:
        seen = 0
        while not done.is_set():
            for record in data.query("data", "metadata.updated", limit=20) + data.sample_dataset("data", 5):
                assert record.tensor.unique().item() == record.metadata["value"]
            count = data.count("data")
            assert count >= seen
            seen = count
            data.sql("SELECT count(*) FROM data")

    def watch() -> None:
        for _ in range(2):
            running.acquire(timeout=100)
        done.set()

    data.insert("data", torch.full((10,), -1), {"value": -1, "updated": False})
    together(lambda: write(1), lambda: write(2), read, read, watch)
    assert data.count("data") == 2 * 15 * 5 + 1
    assert data.count("data", "metadata.updated") == 30
    assert data.verify().ok


def test_deleting_while_others_read_never_shows_a_wrong_tensor(data: TensorStorage) -> None:
    ids = [data.insert("data", torch.full((20_000,), n), {"n": n}) for n in range(30)]

    def delete() -> None:
        for record_id in ids[::2]:
            data.delete_tensor("data", record_id)
        data.maintenance.compact(min_dead=0.0)

    def read() -> None:
        for _ in range(3):
            for n, record_id in enumerate(ids):
                try:
                    record = data.get_tensor_by_id("data", record_id)
                except TensorNotFoundError:
                    continue
                assert record.tensor.unique().item() == n
            for record in data.scan("data"):
                assert record.tensor.unique().item() == record.metadata["n"]

    together(delete, read, read)
    assert [record.metadata["n"] for record in data.query("data")] == list(range(1, 30, 2))


def test_equal_tensors_inserted_at_once_share_one_object(data: TensorStorage) -> None:
    tensor = torch.randn(30_000)

    def insert() -> None:
        for _ in range(10):
            data.insert("data", tensor)

    together(insert, insert, insert)
    assert data.count("data") == 30
    assert data.get_compression_stats("data").objects == 1
    assert data.delete_where("data", "true") == 30
    assert data.get_compression_stats("data").objects == 0


def test_the_same_id_from_many_threads_is_given_once(data: TensorStorage) -> None:
    won: list[int] = []

    def insert(n: int) -> None:
        try:
            data.insert("data", torch.tensor([n]), record_id="same")
        except AlreadyExistsError:
            return
        won.append(n)

    together(*[lambda n=n: insert(n) for n in range(6)])  # type: ignore[misc]
    assert len(won) == 1
    assert data.get_tensor_by_id("data", "same").tensor.tolist() == won


def test_a_thread_s_error_inside_its_block_leaves_the_others_alone(data: TensorStorage) -> None:
    def fail() -> None:
        for _ in range(10):
            with pytest.raises(RuntimeError), data.transaction():
                data.insert("data", torch.zeros(1), {"bad": True})
                raise RuntimeError

    def succeed() -> None:
        for _ in range(10):
            data.insert("data", torch.zeros(1), {"good": True})

    together(fail, succeed, succeed)
    assert data.count("data") == data.count("data", "metadata.good") == 20
