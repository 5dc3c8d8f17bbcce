"""kill -9 at any moment: what was acknowledged is there and right, and what was under way happened wholly or not."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tensordb import TensorStorage

from .programs import PATIENCE, line, made, running, start, stray_segments

WRITER = """
import random, traceback

def work(number):
    db = TensorStorage(folder)
    log = os.open(os.path.join(os.path.dirname(folder), "acknowledged"), os.O_WRONLY | os.O_APPEND)
    rng, mine, count = random.Random(number), [], 0
    held = sys.argv[2].split(",")

    def new(size):
        nonlocal count
        count += 1
        return [f"{number}-{count}", rng.randrange(2**31), size, 0]

    def put(row):
        db.insert("d", made(row[1], row[2]), {"seed": row[1], "size": row[2], "version": 0}, record_id=row[0])

    while True:
        kind = rng.choice(held)
        if kind in ("update", "delete", "transaction") and len(mine) < 3:
            kind = "inline"
        before, after, do = [], [], lambda: None
        if kind == "inline":
            after = [new(rng.randrange(50))]
            do = lambda: put(after[0])
        elif kind == "large":
            after = [new(rng.randrange(4000, 60000))]
            do = lambda: put(after[0])
        elif kind == "many":
            after = [new(100) for _ in range(40)] + [new(50000)]
            do = lambda: db.insert_many(
                "d", [made(row[1], row[2]) for row in after],
                [{"seed": row[1], "size": row[2], "version": 0} for row in after], record_ids=[row[0] for row in after])
        elif kind == "update":
            old = rng.choice(mine)
            before, after = [old], [[*old[:3], old[3] + 1]]
            do = lambda: db.update_tensor_metadata("d", old[0], {"version": old[3] + 1}, merge=True)
        elif kind == "delete":
            before = [rng.choice(mine)]
            do = lambda: db.delete_tensor("d", before[0][0])
        elif kind == "transaction":
            old, gone = rng.sample(mine, 2)
            added = [new(10), new(9000)]
            before, after = [old, gone], [[*old[:3], old[3] + 1], *added]
            def do():
                with db.transaction():
                    put(added[0])
                    db.delete_tensor("d", gone[0])
                    put(added[1])
                    db.update_tensor_metadata("d", old[0], {"version": old[3] + 1}, merge=True)
        elif kind == "compact":
            do = lambda: db.maintenance.compact(min_dead=rng.choice([0, 0.5]))
        elif kind == "encode anew":
            do = lambda: db.maintenance.compact(preset=rng.choice(["fast", "none", "lossless"]))
        os.write(log, (json.dumps([number, "begin", before, after]) + "\\n").encode())
        do()
        os.write(log, (json.dumps([number, "done"]) + "\\n").encode())
        mine = [row for row in mine if row not in before] + after

with TensorStorage(None) as warm:  # what is made at first use is there before the fork
    warm.create_dataset("d")
    warm.insert("d", made(1, 10))
    warm.insert("d", made(1, 50000))

for request in sys.stdin:
    child = os.fork()
    if not child:
        try:
            work(int(request))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    say(child)
    say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
EVERYTHING = "inline,inline,inline,large,many,update,update,delete,delete,transaction,compact,encode anew"
Rows = dict[str, list[Any]]


class Killer:
    """Runs writers on one folder, kills each, and holds the database to what they were told is done."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.folder = folder
        self.log = folder.parent / "acknowledged"
        self.process = process
        self.known: Rows = {}
        self.operations = 0

    def kill_one(self, number: int, operations: int, seconds: float) -> None:
        """Start a writer, and kill it so many seconds after it began its operation of this number."""
        assert self.process.stdin is not None
        self.log.write_bytes(b"")
        self.process.stdin.write(f"{number}\n")
        child = int(line(self.process))
        deadline = time.monotonic() + PATIENCE
        while self.log.read_bytes().count(b"begin") <= operations:
            assert time.monotonic() < deadline, "the writer never got there"
            if select.select([self.process.stdout], [], [], 0.001)[0]:
                self.process.kill()
                raise AssertionError(f"the writer ended before its time: {self.process.communicate()[1]}")
        time.sleep(seconds)  # the moment of death; nothing is waited for
        os.kill(child, signal.SIGKILL)
        assert int(line(self.process)) == -signal.SIGKILL, self.process.communicate()[1]

    def check(self) -> None:
        """Open the folder; what is there must be what was acknowledged, with the last operation done or not."""
        settled, undecided = dict(self.known), None
        for text in self.log.read_text().splitlines():
            entry = json.loads(text)
            if entry[1] == "begin":
                undecided = entry[2:]
            else:
                assert undecided is not None
                settled, undecided = _applied(settled, *undecided), None
                self.operations += 1
        with TensorStorage(self.folder) as db:
            found: Rows = {}
            for record in db.scan("d"):
                meta = record.metadata
                found[record.id] = [record.id, meta["seed"], meta["size"], meta["version"]]
                assert record.tensor.equal(made(meta["seed"], meta["size"])), record.id
            outcomes = [settled] if undecided is None else [settled, _applied(settled, *undecided)]
            assert found in outcomes
            self.known = found
            assert db.verify().ok


def _applied(rows: Rows, before: list[Any], after: list[Any]) -> Rows:
    gone = {row[0] for row in before}
    return {key: row for key, row in rows.items() if key not in gone} | {row[0]: row for row in after}


@contextmanager
def killer(folder: Path, operations: str = EVERYTHING) -> Iterator[Killer]:
    with TensorStorage(folder) as db:
        db.create_dataset("d")
    with running(WRITER, folder, operations) as process:
        yield Killer(folder, process)


def _kill(folder: Path, rounds: int, most: int) -> Killer:
    rng = random.Random(rounds)
    with killer(folder) as subject:
        for number in range(rounds):
            subject.kill_one(number, rng.randrange(most), rng.random() * 0.03)
            subject.check()
            if len(subject.known) > 300:  # keeps the checks short
                with TensorStorage(folder) as db:
                    db.delete_where("d", "true")
                subject.known = {}
    return subject


def test_nothing_acknowledged_is_lost_however_often_a_writer_is_killed(tmp_path: Path) -> None:
    subject = _kill(tmp_path / "db", rounds=12, most=25)
    assert subject.operations > 50


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_in_a_hundred_kills(tmp_path: Path) -> None:
    subject = _kill(tmp_path / "db", rounds=100, most=60)
    print(f"{subject.operations} operations acknowledged over 100 kills")
    assert subject.operations > 1000


def test_what_killed_writers_left_behind_is_reclaimed_and_nothing_else(tmp_path: Path) -> None:
    with killer(tmp_path / "db", "large,many,inline,delete") as subject:
        for number in range(3):
            subject.kill_one(number, 10, 0.005)
            subject.check()
        with TensorStorage(subject.folder) as db:
            db.maintenance.gc()
            assert stray_segments(db) == []
            db.maintenance.compact(min_dead=0)
            assert stray_segments(db) == []
        subject.log.write_bytes(b"")
        subject.check()


@pytest.mark.parametrize("operation", ["compact", "encode anew"])
def test_a_killed_compact_loses_nothing(tmp_path: Path, operation: str) -> None:
    rng = random.Random(7)
    with killer(tmp_path / "db", operation) as subject:
        for number in range(6):
            with TensorStorage(subject.folder) as db, db.transaction():
                for seed, size in enumerate([*range(1, 10), *[40] * 40, *[3000] * 20, 5000, 70000]):
                    row = [f"{number}/{seed}", seed + 100 * number, size, 0]
                    metadata = {"seed": row[1], "size": size, "version": 0}
                    db.insert("d", made(row[1], size), metadata, record_id=row[0])
                    subject.known[row[0]] = row
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
