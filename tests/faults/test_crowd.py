"""Many processes in one folder: nobody fails, nothing acknowledged is lost or doubled, nobody starves."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tensordb import TensorStorage
from tensordb.errors import ConflictError, DatabaseBusyError, ReadOnlyError

from .crowding import crowd
from .nursery import Program
from .programs import finish, line, made, running, start

TRAINING = """
rate, seconds = float(sys.argv[2]), float(sys.argv[3])
with TensorStorage(folder) as db:
    db.insert("d", made(0, 256), {"i": -1})
    say("ready")
    sys.stdin.readline()
    acknowledged, took, begin = {}, [], time.monotonic()
    for i in range(round(rate * seconds)):
        time.sleep(max(0, begin + i / rate - time.monotonic()))
        tensor, started = made(i, 256), time.perf_counter()
        acknowledged[db.insert("d", tensor, {"i": i})] = i
        took.append(time.perf_counter() - started)
    say(json.dumps([acknowledged, took]))
"""
LOOKING = """
rate, seconds = float(sys.argv[2]), float(sys.argv[3])
with TensorStorage(folder) as db:
    say("ready")
    sys.stdin.readline()
    took, begin, most = [], time.monotonic(), 0
    for i in range(round(rate * seconds)):
        time.sleep(max(0, begin + i / rate - time.monotonic()))
        started = time.perf_counter()
        found = db.query("d", "metadata.i >= 0", order_by="metadata.i DESC", limit=20)
        took.append(time.perf_counter() - started)
        newest = max((record.metadata["i"] for record in found), default=0)
        assert newest >= most, "a later query saw less"
        assert all(record.tensor.equal(made(record.metadata["i"], 256)) for record in found)
        most = newest
    say(json.dumps([most, took]))
"""
FLAT_OUT = """
number, work, seconds = int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
with TensorStorage(folder) as db:
    say("ready")
    sys.stdin.readline()
    done, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        if work == "write":
            seed = number * 10**6 + len(done)
            done.append(db.insert("d", made(seed, 64), {"seed": seed}))
        else:
            found = db.query("d", "metadata.seed >= ?", params=[number], order_by="record_id DESC", limit=3)
            assert all(record.tensor.equal(made(record.metadata["seed"], 64)) for record in found)
            done.append(len(found))
    say(json.dumps([work, done]))
"""
COMPACTING = """
with TensorStorage(folder) as db:
    say("ready")
    sys.stdin.readline()
    end, rounds = time.monotonic() + float(sys.argv[2]), 0
    while time.monotonic() < end:
        db.maintenance.compact(min_dead=0)
        rounds += 1
    say(rounds)
"""
CHURNING = """
number = int(sys.argv[2])
with TensorStorage(folder) as db:
    say("ready")
    sys.stdin.readline()
    end, kept = time.monotonic() + float(sys.argv[3]), []
    while time.monotonic() < end:
        seed = number * 10**6 + len(kept)
        small = db.insert("d", made(seed, 64), {"seed": seed, "size": 64})
        large = db.insert("d", made(seed, 20000), {"seed": seed, "size": 20000})
        gone = db.insert("d", made(seed + 1, 30000), {"seed": seed + 1, "size": 30000})
        assert db.get_tensor_by_id("d", large).tensor.equal(made(seed, 20000))
        db.delete_tensor("d", gone)
        kept += [small, large]
    say(json.dumps(kept))
"""


def created(folder: Path) -> Path:
    with TensorStorage(folder) as db:
        db.create_dataset("d")
    return folder


def together(*processes: Program) -> list[Any]:
    """Let the programs begin at once and return what each said in the end; each must succeed silently."""
    for process in processes:
        assert line(process) == "ready"
    for process in processes:
        process.stdin.write("\n")
    return [json.loads(finish(process)) for process in processes]


def training_beside_a_notebook(folder: Path, seconds: float) -> list[list[float]]:
    created(folder)
    with running(TRAINING, folder, 20, seconds) as writer, running(LOOKING, folder, 3, seconds) as reader:
        (acknowledged, insert_times), (newest, query_times) = together(writer, reader)
    assert len(acknowledged) == 20 * seconds
    assert newest > 0, "the notebook never saw what the training inserted"
    with TensorStorage(folder) as db:
        found = {record.id: record for record in db.scan("d", "metadata.i >= 0")}
        assert {key: record.metadata["i"] for key, record in found.items()} == acknowledged
        assert all(found[key].tensor.equal(made(i, 256)) for key, i in acknowledged.items())
    return [insert_times, query_times]


def test_a_training_and_a_notebook_share_a_folder_without_error_or_loss(tmp_path: Path) -> None:
    training_beside_a_notebook(tmp_path / "db", 3)


@pytest.mark.slow
def test_a_training_and_a_notebook_share_a_folder_for_twenty_seconds(tmp_path: Path) -> None:
    for name, times in zip(("insert", "query"), training_beside_a_notebook(tmp_path / "db", 20), strict=True):
        ordered = sorted(times)
        half, most = (ordered[int(share * len(ordered))] * 1000 for share in (0.5, 0.99))
        print(f"{name}: n={len(times)} p50 {half:.2f} ms, p99 {most:.2f} ms, worst {ordered[-1] * 1000:.1f} ms")


def flat_out(folder: Path, seconds: float) -> dict[str, list[int]]:
    with TensorStorage(folder) as db:
        db.create_dataset("d", {"metadata": {"seed": "int"}})
    works = [(1, "write"), (2, "write"), (3, "read"), (4, "read")]
    processes = [start(FLAT_OUT, folder, number, work, seconds) for number, work in works]
    results = together(*processes)
    written = [key for work, done in results if work == "write" for key in done]
    with TensorStorage(folder) as db:
        stored = db.sql("SELECT record_id, metadata.seed AS seed FROM d").to_pydict()
        assert sorted(stored["record_id"]) == sorted(written)
        assert len(set(stored["seed"])) == len(written)
        assert db.verify().ok
    return {kind: [len(done) for work, done in results if work == kind] for kind in ("write", "read")}


def test_two_writers_and_two_readers_flat_out_lose_nothing_and_none_starves(tmp_path: Path) -> None:
    counts = flat_out(tmp_path / "db", 3)
    for kind in counts.values():
        assert min(kind) >= max(kind) / 4, counts


@pytest.mark.slow
def test_two_writers_and_two_readers_flat_out_for_ten_seconds(tmp_path: Path) -> None:
    counts = flat_out(tmp_path / "db", 10)
    print(counts)
    for kind in counts.values():
        assert min(kind) >= max(kind) / 4, counts


def test_compact_beside_writers_and_readers_of_other_processes_harms_none_of_them(tmp_path: Path) -> None:
    folder = created(tmp_path / "db")
    with TensorStorage(folder) as db:
        ids = [db.insert("d", made(i, 30000), {"seed": i, "size": 30000}) for i in range(8)]
    reading = """
        ids = json.loads(sys.argv[2])
        with TensorStorage(folder, read_only=True) as db:
            say("ready")
            sys.stdin.readline()
            end, rounds = time.monotonic() + float(sys.argv[3]), 0
            while time.monotonic() < end:
                for record in db.get_many("d", ids):
                    assert record.tensor.equal(made(record.metadata["seed"], 30000))
                db.verify()
                rounds += 1
            say(rounds)
    """
    rounds, again, kept, _ = together(
        start(COMPACTING, folder, 2),
        start(COMPACTING, folder, 2),
        start(CHURNING, folder, 7, 2),
        start(reading, folder, json.dumps(ids), 2),
    )
    assert min(rounds, again) > 0
    with TensorStorage(folder) as db:
        assert {record.id for record in db.scan("d")} == {*ids, *kept}
        for record in db.scan("d"):
            assert record.tensor.equal(made(record.metadata["seed"], record.metadata["size"]))
        assert db.verify().ok


def test_a_crowd_of_processes_threads_and_forks_loses_nothing_and_nobody_waits_for_ever(tmp_path: Path) -> None:
    figures = crowd(tmp_path / "db", 4, writers=2, readers=2)
    assert figures["fewest operations of one"] > 0


@pytest.mark.slow
def test_a_crowd_of_eight_processes_for_two_minutes(tmp_path: Path) -> None:
    figures = crowd(tmp_path / "db", 120)
    print(figures)
    assert figures["longest wait (s)"] < 30


HOLDING = """
db = TensorStorage(folder)
with db.transaction():
    db.insert("d", made(1, 10))
    say("holding")
    sys.stdin.readline()
"""


@pytest.mark.parametrize("read_only", [False, True])
def test_the_error_after_busy_timeout_names_the_process_that_holds_the_database(
    tmp_path: Path, read_only: bool
) -> None:
    folder = created(tmp_path / "db")
    with TensorStorage(folder, read_only=read_only, busy_timeout=0.3) as db, running(HOLDING, folder) as holder:
        assert line(holder) == "holding"
        with pytest.raises(DatabaseBusyError, match=f"process {holder.pid} "):
            db.count("d")
        if not read_only:
            with pytest.raises(DatabaseBusyError, match=f"process {holder.pid} "):
                db.insert("d", made(2, 10_000))
        with pytest.raises(DatabaseBusyError, match=f"process {holder.pid} "):
            TensorStorage(folder, read_only=read_only, busy_timeout=0.3)
        finish(holder, "\n")
        assert db.count("d") == 1


def test_a_thread_that_waits_too_long_for_another_thread_gets_an_error(tmp_path: Path) -> None:
    with TensorStorage(created(tmp_path / "db"), busy_timeout=0.2) as db:
        inside, leave = threading.Event(), threading.Event()

        def hold() -> None:
            with db.transaction():
                inside.set()
                leave.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        assert inside.wait(60)
        with pytest.raises(DatabaseBusyError):
            db.count("d")
        leave.set()
        thread.join()
        assert db.count("d") == 0


def test_a_read_only_storage_sees_what_a_writer_beside_it_commits(tmp_path: Path) -> None:
    folder = created(tmp_path / "db")
    code = """
        db = TensorStorage(folder)
        for request in sys.stdin:
            say(db.insert("d", made(5, int(request))))
    """
    with TensorStorage(folder, read_only=True) as reader, running(code, folder) as writer:
        assert reader.count("d") == 0
        for size in (10, 50_000, 11):
            writer.stdin.write(f"{size}\n")
            assert reader.get_tensor_by_id("d", line(writer)).tensor.equal(made(5, size))
        with pytest.raises(ReadOnlyError):
            reader.insert("d", made(1, 1))


def test_two_storages_of_one_process_share_a_folder(tmp_path: Path) -> None:
    folder = created(tmp_path / "db")
    with (
        TensorStorage(folder) as first,
        TensorStorage(folder) as second,
        TensorStorage(folder, read_only=True) as third,
    ):
        for i in range(5):
            key = first.insert("d", made(i, 10_000))
            assert second.get_tensor_by_id("d", key).tensor.equal(made(i, 10_000))
            second.update_tensor_metadata("d", key, {"i": i})
            assert third.query("d", "metadata.i = ?", params=[i])[0].id == key
            first.maintenance.compact(min_dead=0)
            second.insert("d", made(100 + i, 10))
        assert (first.count("d"), third.count("d")) == (10, 10)
        assert third.verify().ok


def test_a_storage_inside_the_transaction_of_another_one_in_the_same_thread_gets_an_error(tmp_path: Path) -> None:
    folder = created(tmp_path / "db")
    with TensorStorage(folder) as first, TensorStorage(folder, busy_timeout=0.2) as second, first.transaction():
        first.insert("d", made(1, 10))
        with pytest.raises((DatabaseBusyError, ConflictError)):
            second.count("d")
