"""kill -9 while checkpoints are saved: what was acknowledged is there bit for bit, and nothing is there by halves."""

from __future__ import annotations

import inspect
import json
import os
import random
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tensordb import TensorStorage

from .programs import PATIENCE, line, made, running


def state_of(run: str, step: int) -> dict[str, torch.Tensor]:
    """Return what a checkpoint holds: weights that drift from step to step, some that stay, and some of its own."""
    seed = sum(map(ord, run))
    weight = made(seed, 20_000).bfloat16()
    weight[step % 50 :: 50] *= 2
    return {"w": weight, "own": made(seed * 10_000 + step, 3000), "frozen": torch.ones(9000)}


def note_of(step: int) -> str:
    """Return text that is now in the checkpoint's row and now an object."""
    return f"{step} " * (6000 if step % 3 == 0 else 1)


WRITER = "\n".join(
    [
        inspect.getsource(state_of),
        inspect.getsource(note_of),
        """
import random, traceback

def work(number):
    db = TensorStorage(folder, busy_timeout=100)
    log = os.open(os.path.join(os.path.dirname(folder), "acknowledged"), os.O_WRONLY | os.O_APPEND)
    rng = random.Random(number)

    def tell(*words):
        os.write(log, (json.dumps(words) + "\\n").encode())

    steps = {run: max((each.step for each in db.checkpoints.list(run)), default=-1) for run in db.checkpoints.runs()}
    steps = {run: steps.get(run, -1) for run in ("sync", "async")}
    pending = None
    while True:
        for run in steps:
            step = steps[run] = steps[run] + 1
            tell("begin", "save", run, step)
            facts = {"state": {"note": note_of(step)}, "step": step, "rng": False}
            if run == "sync":
                db.checkpoints.save(run, state_of(run, step), **facts)
                tell("done", "save", run, step)
            else:
                pending = db.checkpoints.save(run, state_of(run, step), **facts, async_=True)
                if rng.random() < 0.7:
                    pending.wait()
                    tell("done", "save", run, step)
        if rng.random() < 0.3:
            tell("begin", "prune", "sync", steps["sync"])
            db.checkpoints.prune("sync", keep_last=rng.randint(1, 4))
            tell("done", "prune", "sync", steps["sync"])
        if rng.random() < 0.2:
            step = steps["async"]
            tell("begin", "fork", f"fork {number}", step)
            if f"fork {number}" in db.checkpoints.runs():
                db.checkpoints.delete_run(f"fork {number}")
            db.checkpoints.fork("async", f"fork {number}", step=step)
            tell("done", "fork", f"fork {number}", step)
        if rng.random() < 0.1:
            db.maintenance.compact(min_dead=rng.choice([0, 0.5]))

with TensorStorage(None) as warm:  # what is made at first use is there before the fork
    warm.checkpoints.save("run", state_of("run", 0), state={"note": note_of(0)}, async_=True).wait()
    warm.checkpoints.save("run", state_of("run", 1))

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
""",
    ]
)
KILLS = 10
KEPT = 4
"""Checkpoints of each run that are left after each look, which keeps the looks short."""


class Killer:
    """Runs writers on one folder, kills each, and holds the database to what they were told is done."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.folder = folder
        self.log = folder.parent / "acknowledged"
        self.process = process
        self.acknowledged = 0
        self.orphans = 0

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
        """Open the folder: all that was acknowledged is there, all that is there is whole, and the next save works."""
        entries = [json.loads(text) for text in self.log.read_text().splitlines()]
        done = {(run, step) for moment, what, run, step in entries if (moment, what) == ("done", "save")}
        pruned = any(what == "prune" for _, what, *_ in entries)
        self.acknowledged += len(done)
        with TensorStorage(self.folder) as db:
            found = {(each.run, each.step) for each in db.checkpoints.list()}
            newest = {run: max(step for name, step in done if name == run) for run in {name for name, _ in done}}
            lost = {(run, step) for run, step in done - found if run == "async" or not pruned or step == newest[run]}
            assert not lost
            for each in db.checkpoints.list():
                tree = db.checkpoints.load(each)
                # The step of a fork is that of the checkpoint of "async" that it began with.
                expected = state_of("async" if each.run.startswith("fork") else each.run, each.step)
                assert list(tree["model"]) == list(expected), each
                assert all(torch.equal(tree["model"][name], expected[name]) for name in expected), each
                assert tree["state"] == {"note": note_of(each.step)}, each
            assert db.verify().ok
            self._reclaim(db)
            self._go_on(db)

    def _reclaim(self, db: TensorStorage) -> None:
        self.orphans += db.maintenance.gc().segments_removed
        with db._db.catalog.read() as con:
            named = {segment for (segment,) in con.execute("SELECT DISTINCT segment FROM tensordb.objects").fetchall()}
        there = {int(path.stem, 16) for path in (self.folder / "segments").glob("*.seg")}
        assert there <= named

    def _go_on(self, db: TensorStorage) -> None:
        for run in db.checkpoints.runs():
            if run.startswith("fork"):
                db.checkpoints.delete_run(run)
            elif db.checkpoints.list(run):
                db.checkpoints.prune(run, keep_last=KEPT)
                step = (db.checkpoints.get(run).step or 0) + 1
                db.checkpoints.save(
                    run,
                    state_of(run, step),
                    state={"note": note_of(step)},
                    step=step,
                    rng=False,
                )
                assert torch.equal(db.checkpoints.load(run)["model"]["own"], state_of(run, step)["own"])


def _kill(folder: Path, rounds: int) -> Killer:
    rng = random.Random(rounds)
    with TensorStorage(folder) as db:
        assert db.checkpoints.runs() == []
    with running(WRITER, folder) as process:
        subject = Killer(folder, process)
        for number in range(rounds):
            subject.kill_one(number, rng.randrange(8), rng.random() * 0.05)
            subject.check()
    return subject


def test_no_checkpoint_that_was_acknowledged_is_lost_however_often_a_writer_is_killed(tmp_path: Path) -> None:
    assert _kill(tmp_path / "db", KILLS).acknowledged > KILLS


@pytest.mark.slow
def test_no_checkpoint_that_was_acknowledged_is_lost_in_fifty_kills(tmp_path: Path) -> None:
    subject = _kill(tmp_path / "db", 50)
    print(f"{subject.acknowledged} checkpoints acknowledged over 50 kills; {subject.orphans} orphans reclaimed")
    assert subject.orphans > 10
