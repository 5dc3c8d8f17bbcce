"""Kills writers at any moment and holds the database to what they were told is done."""

from __future__ import annotations

import itertools
import json
import os
import random
import select
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tensordb import TensorStorage

from .killed_values import imported, name_of, note_of, state_of, tag_of, weight_of
from .killed_writer import EVERYTHING, Held
from .nursery import Program
from .programs import PATIENCE, line, made, start, stray_segments

CHECKPOINT_KINDS = {"save", "save_async", "prune", "fork", "delete_run", "transaction", "undone"}


class Killer:
    """Runs writers on one folder, kills each, and looks at what is left.

    Attributes:
        known: What the database held at the last look.
        acknowledged: Operations that were acknowledged, by kind.
        interrupted: Operations that were under way at a kill, by kind.
        orphans: Segments that nothing named and `gc` removed.
    """

    def __init__(self, folder: Path, process: Program) -> None:
        self.folder = folder
        self.log = folder.parent / "acknowledged"
        self.process = process
        self.known: Held = {}
        self.acknowledged: Counter[str] = Counter()
        self.interrupted: Counter[str] = Counter()
        self.orphans = 0

    def kill_one(self, number: int, operations: int, seconds: float) -> None:
        """Start a writer, and kill it so many seconds after it began its operation of this number.

        With a negative number of operations the writer is killed so many seconds after it was started, be it while it
        opens the database, which brings back what those before have left.
        """
        self.log.write_bytes(b"")
        self.process.stdin.write(f"{number}\n")
        child = int(line(self.process))
        deadline = time.monotonic() + PATIENCE
        while self.log.read_bytes().count(b'"begin"') <= operations:
            assert time.monotonic() < deadline, "the writer never got there"
            if select.select([self.process.stdout], [], [], 0.003)[0]:
                self.process.kill()
                raise AssertionError(f"the writer ended before its time: {self.process.communicate()[1]}")
        time.sleep(seconds)  # the moment of death; nothing is waited for
        os.kill(child, signal.SIGKILL)
        assert int(line(self.process)) == -signal.SIGKILL, self.process.communicate()[1]

    def check(self, *, read_only: bool = False, clean: bool = True, verified: bool = True) -> None:
        """Open the folder: all that was acknowledged is there, what was under way happened wholly or not at all.

        Args:
            read_only: Look at first without being allowed to write.
            clean: Collect garbage afterwards, which has to leave no segment that nothing names.
            verified: Hold the catalog against itself as well, which the look at what it names does not.
        """
        settled, undecided = self._told()
        outcomes = list(_outcomes(settled, undecided))
        if read_only:
            with TensorStorage(self.folder, read_only=True) as db:
                self._take(db, outcomes, undecided)
        with TensorStorage(self.folder) as db:
            self.known = self._take(db, outcomes, undecided)
            if verified:
                report = db.verify()
                assert report.ok, report
            if clean:
                self.orphans += db.maintenance.gc().segments_removed
                assert stray_segments(db) == []

    def _told(self) -> tuple[Held, list[list[Any]]]:
        """Return what holds for certain, and the operations of which only the beginning was told."""
        begun: dict[int, list[Any]] = {}
        settled = dict(self.known)
        for text in self.log.read_text().splitlines():
            number, what, *words = json.loads(text)
            if what == "begin":
                begun[number] = words
                continue
            kind, before, after = begun.pop(number)
            settled = _applied(settled, before, after)
            self.acknowledged[kind] += 1
        self.interrupted.update(kind for kind, _, _ in begun.values())
        return settled, list(begun.values())

    def _take(self, db: TensorStorage, outcomes: Sequence[Held], undecided: Sequence[Any]) -> Held:
        found = self._found(db)
        assert found in outcomes, _difference(found, outcomes, undecided)
        return found

    def _found(self, db: TensorStorage) -> Held:
        return {**self._records(db), **self._imported(db), **self._checkpoints(db), **self._weights(db)}

    def _records(self, db: TensorStorage) -> Held:
        found: Held = {}
        for record in db.scan("d"):
            meta = record.metadata
            found[f"r/{record.id}"] = [meta["seed"], meta["size"], meta["version"]]
            assert record.tensor.equal(made(meta["seed"], meta["size"])), record.id
        if db.list_indexes("d"):
            found["x/tag"] = []
            of_a_tag = [key for key, row in found.items() if row and tag_of(row[0]) == "tag 1"]
            assert sorted(f"r/{each.id}" for each in db.query("d", "metadata.tag = 'tag 1'")) == sorted(of_a_tag)
        return found

    def _imported(self, db: TensorStorage) -> Held:
        found: Held = {}
        for name in db.list_datasets():
            if name != "d":
                seed = int(name.split()[1])
                assert name == name_of(seed)
                records = db.get_dataset_with_metadata(name)
                assert [each.metadata["place"] for each in records] == imported(seed)["place"]
                assert torch.equal(torch.stack([each.tensor for each in records]), imported(seed)["x"])
                found[f"i/{seed}"] = []
        return found

    def _checkpoints(self, db: TensorStorage) -> Held:
        found: Held = {}
        for each in db.checkpoints.list():
            tree = db.checkpoints.load(each)
            assert each.step is not None
            # The step of a fork is that of the checkpoint of "async" that it began with.
            expected = state_of("async" if each.run.startswith("fork") else each.run, each.step)
            assert list(tree["model"]) == list(expected), each
            assert all(torch.equal(tree["model"][name], expected[name]) for name in expected), each
            assert tree["state"] == {"note": note_of(each.step)}, each
            found[f"c/{each.run}/{each.metadata['number']}"] = [each.step]
        return found

    def _weights(self, db: TensorStorage) -> Held:
        found: Held = {}
        for info in [*db.weights.list_weights(), *db.weights.list_deltas()]:
            (label,) = info.labels
            assert label.name is not None
            assert torch.equal(db.weights.load(info.hash), weight_of(int(label.name)))
            found[f"w/{label.name}"] = []
        return found

    def empty(self) -> None:
        """Delete nearly everything, which keeps the looks short."""
        with TensorStorage(self.folder) as db:
            assert db.verify().ok
            db.delete_where("d", "true")
            for name in db.list_datasets():
                if name != "d":
                    db.delete_dataset(name)
            for run in db.checkpoints.runs():
                db.checkpoints.prune(run, keep_last=1)
            for info in db.weights.list_weights():
                db.weights.delete(info.hash)
            for info in db.weights.list_deltas():
                db.weights.delete_delta(info.hash)
            self.known = self._found(db)


def _applied(held: Held, before: Sequence[str], after: Held) -> Held:
    return {key: row for key, row in held.items() if key not in before} | after


def _outcomes(settled: Held, undecided: Sequence[list[Any]]) -> Iterator[Held]:
    """Yield what the database may hold: operations that depend on each other happen in their order."""
    ordered = len(undecided) > 1 and all(kind in CHECKPOINT_KINDS for kind, _, _ in undecided)
    for happened in itertools.product([True, False], repeat=len(undecided)):
        if ordered and list(happened) != sorted(happened, reverse=True):
            continue
        held = settled
        for (_, before, after), done in zip(undecided, happened, strict=True):
            held = _applied(held, before, after) if done else held
        yield held


def _difference(found: Held, outcomes: Sequence[Held], undecided: Sequence[Any]) -> str:
    expected = outcomes[-1]
    lost = {key: row for key, row in expected.items() if found.get(key) != row}
    more = {key: row for key, row in found.items() if expected.get(key) != row}
    return f"beside what is settled: lost {lost}, more {more}; under way was {undecided}"


@contextmanager
def killer(folder: Path, operations: Sequence[str] = tuple(EVERYTHING)) -> Iterator[Killer]:
    """Run a program that forks writers of these operations on a new database."""
    with TensorStorage(folder) as db:
        db.create_dataset("d")
    process = start("from tests.faults.killed_writer import main; main()", folder, ",".join(operations))
    try:
        yield Killer(folder, process)
    finally:
        process.kill()
        process.communicate()


def kill_often(subject: Killer, rounds: int, rng: random.Random, *, most: int) -> None:
    """Kill writers at random moments, and look after each kill; verify what every two have left."""
    for number in range(rounds):
        opening = rng.random() < 0.1
        subject.kill_one(number, -1 if opening else rng.randrange(most), rng.random() * (0.05 if opening else 0.03))
        last = number == rounds - 1
        subject.check(read_only=number % 5 == 1, clean=number % 2 == 0, verified=number % 2 == 1 or last)
        if len(subject.known) > 30:
            subject.empty()
