"""One process of a crowd: it writes or reads with several threads, forks in between, and says what it did.

A writer's records, checkpoints and weights are its own, so that it knows what has to be there; what it was told is
stored it says in the end. Whatever goes wrong in a thread or in a forked child ends the process with a message.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import sys
import threading
import time
import traceback
from typing import Any

import torch

from tensordb import TensorStorage

from .programs import made

THREADS = 2
_HANGS = 100
"""Seconds after which a forked child says where it hangs."""
KEPT = 30
"""Records that a thread keeps: beyond them it deletes its oldest, so that the database stays small."""


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    """Return how many files are open."""
    return len(os.listdir("/proc/self/fd"))


class Member:
    """What all threads of a process share."""

    def __init__(self, folder: str, number: int, seconds: float, seed: str) -> None:
        self.db = TensorStorage(folder, busy_timeout=60)
        self.number = number
        self.seed = seed
        self.begun = time.monotonic()
        self.seconds = seconds
        self.kept: dict[str, list[int]] = {}
        self.steps: list[int] = []
        self.weights: list[str] = []
        self.operations = 0
        self.longest = 0.0
        self.failure = ""
        self.measured: list[tuple[int, int]] = []
        self._lock = threading.Lock()

    def going(self) -> bool:
        return not self.failure and time.monotonic() - self.begun < self.seconds

    def timed(self, act: Any) -> Any:
        begun = time.perf_counter()
        result = act()
        with self._lock:
            self.longest = max(self.longest, time.perf_counter() - begun)
            self.operations += 1
        return result

    def run(self, body: Any, *arguments: Any) -> None:
        try:
            body(*arguments)
        except BaseException:
            self.failure = traceback.format_exc()

    def write(self, thread: int) -> None:
        """Insert, change and delete records of this thread."""
        rng = random.Random(f"{self.seed} {self.number} {thread}")
        mine: dict[str, list[int]] = {}
        while self.going():
            kind = rng.choice(["small", "small", "large", "many", "update", "transaction"])
            rows = [
                [rng.randrange(2**31), 20_000 if kind == "large" else 64] for _ in range(12 if kind == "many" else 1)
            ]
            if kind in ("small", "large", "many"):
                tensors, documents = [made(*row) for row in rows], [{"seed": s, "size": n} for s, n in rows]
                keys = self.timed(lambda t=tensors, d=documents: self.db.insert_many("d", t, d))
                mine |= dict(zip(keys, rows, strict=True))
            elif kind == "update" and mine:
                key = rng.choice(list(mine))
                self.timed(lambda k=key: self.db.update_tensor_metadata("d", k, {"seen": thread}, merge=True))
            elif kind == "transaction" and mine:
                gone = next(iter(mine))
                key = self.timed(lambda g=gone, r=rows[0]: self._swap(g, r))
                del mine[gone]
                mine[key] = rows[0]
            while len(mine) > KEPT:
                gone = next(iter(mine))
                self.timed(lambda g=gone: self.db.delete_tensor("d", g))
                del mine[gone]
        with self._lock:
            self.kept |= mine

    def _swap(self, gone: str, row: list[int]) -> str:
        with self.db.transaction():
            self.db.delete_tensor("d", gone)
            return self.db.insert("d", made(*row), {"seed": row[0], "size": row[1]})

    def save(self) -> None:
        """Save checkpoints of a run of this process, keep three, and store weights; fork now and then."""
        run, step = f"run {self.number}", 0
        while self.going():
            state = {"w": made(self.number, 8000), "own": made(self.number * 1000 + step, 500)}
            saved = self.timed(
                lambda s=step, t=state: self.db.checkpoints.save(run, t, step=s, async_=s % 2 == 1, rng=False)
            )
            if step % 2:
                self.timed(saved.wait)
            self.steps = [*self.steps, step][-3:]
            self.timed(lambda: self.db.checkpoints.prune(run, keep_last=3))
            if step % 5 == 2:
                self.weights.append(self.timed(lambda s=step: self.db.weights.store(made(s, 300 + self.number))))
            if step % 4 == 3:
                self._fork(step)
            if step % 6 == 5:
                self.timed(lambda: self.db.maintenance.compact(min_dead=0.5))
            self.measured.append((resident(), descriptors()))
            step += 1

    def _fork(self, step: int) -> None:
        """Let a child insert with the storage that it inherits, while other threads are at work."""
        key, row = f"child {self.number}-{step}", [self.number * 10_000 + step, 100]
        child = os.fork()
        if not child:
            try:
                torch.set_num_threads(1)
                faulthandler.dump_traceback_later(_HANGS, exit=True)
                self.db.insert("d", made(*row), {"seed": row[0], "size": row[1]}, record_id=key)
                assert self.db.get_tensor_by_id("d", key).tensor.equal(made(*row))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with self._lock:
            self.kept[key] = row

    def read(self, thread: int) -> None:
        """Ask in every way; whatever is answered has to be whole and right."""
        rng = random.Random(f"{self.seed} {self.number} {thread}")
        while self.going():
            kind = rng.choice(["query", "page", "sample", "scan", "load", "weights"])
            if kind == "query":
                asked = "metadata.seed % 7 = ?"
                found = self.timed(lambda a=asked: self.db.query("d", a, params=[rng.randrange(7)], limit=20))
            elif kind == "page":
                found = self.timed(lambda: self.db.get_records_paginated("d", rng.randrange(50), 20))
            elif kind == "sample":
                found = self.timed(lambda: self.db.sample_dataset("d", 10))
            elif kind == "scan":
                found = self.timed(lambda: list(self.db.scan("d", limit=40)))
            else:
                found = []
                self.timed(self._load if kind == "load" else self.db.weights.list_weights)
            assert len({record.id for record in found}) == len(found)
            for record in found:
                assert record.tensor.equal(made(record.metadata["seed"], record.metadata["size"])), record.id
            self.measured.append((resident(), descriptors()))

    def _load(self) -> None:
        for run in self.db.checkpoints.runs():
            number = int(run.split()[1])
            try:
                each = self.db.checkpoints.get(run)
                tree = self.db.checkpoints.load(each)
            except KeyError:  # pruned since
                continue
            assert tree["model"]["own"].equal(made(number * 1000 + (each.step or 0), 500)), each
            assert tree["model"]["w"].equal(made(number, 8000)), each

    def report(self) -> dict[str, Any]:
        half = self.measured[len(self.measured) // 2 :] or [(0, 0)]
        early = self.measured[len(self.measured) // 4 : len(self.measured) // 2] or half
        return {
            "operations": self.operations,
            "longest": self.longest,
            "kept": self.kept,
            "steps": self.steps,
            "weights": self.weights,
            "memory": [max(each[0] for each in early), max(each[0] for each in half)],
            "descriptors": [max(each[1] for each in early), max(each[1] for each in half)],
        }


def main() -> None:
    """Say "ready", begin when told to, and say in the end what was done."""
    folder, number, work, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
    torch.set_num_threads(1)
    member = Member(folder, number, seconds, sys.argv[5])
    member.db.list_datasets()
    print("ready", flush=True)
    sys.stdin.readline()
    member.begun = time.monotonic()
    bodies = [(member.read, i) for i in range(THREADS)]
    if work == "write":
        bodies = [*((member.write, i) for i in range(THREADS)), (member.save,)]
    threads = [threading.Thread(target=member.run, args=body) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    member.db.close()
    if member.failure:
        sys.exit(member.failure)
    print(json.dumps(member.report()), flush=True)


if __name__ == "__main__":
    main()
