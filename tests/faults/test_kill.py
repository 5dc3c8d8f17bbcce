"""kill -9 at any moment: what was acknowledged is there and right, and what was under way happened wholly or not.

A hundred kills; `python -m tests.proof kill` does this thousands of times.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tensordb import TensorStorage

from .killing import kill_often, killer
from .programs import PATIENCE, made, start, stray_segments


def test_nothing_acknowledged_is_lost_however_often_a_writer_is_killed(tmp_path: Path) -> None:
    with killer(tmp_path / "db") as subject:
        kill_often(subject, 62, random.Random(1), most=12)
    assert sum(subject.acknowledged.values()) > 100


def test_records_alone_survive_kills(tmp_path: Path) -> None:
    chosen = ["inline", "large", "many", "update", "delete", "transaction", "compact"]
    with killer(tmp_path / "db", chosen) as subject:
        kill_often(subject, 10, random.Random(2), most=12)


def test_checkpoints_saved_in_the_background_survive_kills(tmp_path: Path) -> None:
    with killer(tmp_path / "db", ["save", "save_async", "prune", "fork", "delete_run", "compact"]) as subject:
        kill_often(subject, 12, random.Random(3), most=8)
    assert subject.acknowledged["save_async"] > 2


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_in_three_hundred_kills(tmp_path: Path) -> None:
    with killer(tmp_path / "db") as subject:
        kill_often(subject, 300, random.Random(4), most=30)
    print(f"{sum(subject.acknowledged.values())} operations over 300 kills; {subject.orphans} orphans reclaimed")
    assert subject.orphans > 10


def test_what_killed_writers_left_behind_is_reclaimed_and_nothing_else(tmp_path: Path) -> None:
    with killer(tmp_path / "db", ["large", "many", "inline", "delete"]) as subject:
        for number in range(4):
            subject.kill_one(number, 10, 0.005)
            subject.check(clean=False)
        with TensorStorage(subject.folder) as db:
            db.maintenance.gc()
            assert stray_segments(db) == []
            db.maintenance.compact(min_dead=0)
            assert stray_segments(db) == []
        subject.log.write_bytes(b"")
        subject.check()


@pytest.mark.parametrize("operation", ["compact", "recode"])
def test_a_killed_compact_loses_nothing(tmp_path: Path, operation: str) -> None:
    rng = random.Random(7)
    with killer(tmp_path / "db", [operation]) as subject:
        for number in range(6):
            with TensorStorage(subject.folder) as db, db.transaction():
                for seed, size in enumerate([*range(1, 10), *[40] * 40, *[3000] * 20, 5000, 70000]):
                    key, seeded = f"{number}/{seed}", seed + 100 * number
                    metadata = {"seed": seeded, "size": size, "version": 0}
                    db.insert("d", made(seeded, size), metadata, record_id=key)
                    subject.known[f"r/{key}"] = [seeded, size, 0]
            subject.kill_one(number, 0, rng.random() * 0.1)
            subject.check()


DYING = """
db = TensorStorage(folder)
def tensors():
    for seed in range(20):
        yield made(seed, 100_000)
    os.kill(os.getpid(), signal.SIGKILL)
db.insert_many("d", tensors())
"""


@pytest.mark.parametrize(("size", "strays"), [(10, 1), (100_000, 0)], ids=["segment of its own", "shared segment"])
def test_bytes_of_an_insert_that_died_before_its_commit_are_reclaimed(tmp_path: Path, size: int, strays: int) -> None:
    folder = tmp_path / "db"
    with TensorStorage(folder) as db:
        db.create_dataset("d")
        kept = db.insert("d", made(1, size))
    dying = start(DYING, folder)
    assert dying.communicate(timeout=PATIENCE)[1] == ""
    assert dying.returncode == -signal.SIGKILL
    with TensorStorage(folder) as db:
        assert db.count("d") == 1
        assert len(stray_segments(db)) == strays
        report = db.maintenance.gc() if strays else db.maintenance.compact()
        assert (report.segments_removed, stray_segments(db)) == (1, [])
        assert report.nbytes_freed > 4_000_000
        assert db.get_tensor_by_id("d", kept).tensor.equal(made(1, size))
