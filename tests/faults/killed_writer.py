"""The writer that is killed: any operation of the public API, told to a log before it begins and after it is done.

What the database holds is a flat dict here: ``r/<id>`` a record, ``c/<run>/<number>`` a checkpoint, ``w/<seed>`` a
weight, ``i/<seed>`` a dataset of its own that was imported, ``x/<field>`` an index. An operation is what it takes away
and what it adds. `Killer` in `killing.py` holds the database to that.
"""

from __future__ import annotations

import json
import os
import random
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch

from tensordb import PendingCheckpoint, TensorStorage

from .killed_values import document_of, imported, name_of, note_of, state_of, weight_of
from .programs import made

Held = dict[str, list[Any]]
EVERYTHING = {
    "inline": 6,
    "large": 3,
    "many": 2,
    "update": 4,
    "delete": 4,
    "delete_where": 2,
    "transaction": 4,
    "undone": 1,
    "compact": 2,
    "recode": 1,
    "gc": 1,
    "save": 4,
    "save_async": 5,
    "prune": 2,
    "fork": 1,
    "delete_run": 1,
    "weight": 2,
    "delta": 1,
    "delete_weight": 1,
    "preset": 1,
    "import": 1,
    "delete_dataset": 1,
    "index": 1,
    "repair": 1,
}
"""The operations, with how often each is chosen."""
MOST = 40
"""Records from which on half of them are deleted, which keeps the looks short."""


class Writer:
    """Does operations for ever, on what is its own."""

    def __init__(self, folder: str, number: int, chosen: list[str]) -> None:
        self.db = TensorStorage(folder, busy_timeout=100)
        self.log = os.open(os.path.join(os.path.dirname(folder), "acknowledged"), os.O_WRONLY | os.O_APPEND)
        self.number, self.chosen = number, chosen
        self.rng = random.Random(number)
        self.count = self.operation = 0
        self.held: Held = {}
        self.pending: tuple[int, PendingCheckpoint] | None = None

    def work(self) -> None:
        self._look()
        while True:
            kind = self.rng.choices(self.chosen, [EVERYTHING[each] for each in self.chosen])[0]
            if sum(key.startswith("r/") for key in self.held) > MOST:
                kind = "delete_where"
            getattr(self, f"_{kind}")()

    def _look(self) -> None:
        """Take over what those before have left: only how it is named, which is cheap."""
        for key, size in self.db.sql("SELECT record_id, metadata FROM d").to_pandas().values.tolist():
            self.held[f"r/{key}"] = [size["seed"], size["size"], size["version"]]
        for each in self.db.checkpoints.list():
            self.held[f"c/{each.run}/{each.metadata['number']}"] = [each.step]
        for name in self.db.list_datasets():
            if name != "d":
                self.held[f"i/{name.split()[1]}"] = []
        self.held |= {f"x/{field}": [] for field in self.db.list_indexes("d")}

    def _tell(self, *words: object) -> None:
        os.write(self.log, (json.dumps(words) + "\n").encode())

    def _do(self, kind: str, before: list[str], after: Held, act: Callable[[], object]) -> None:
        self.operation += 1
        number = self.operation
        self._tell(number, "begin", kind, before, after)
        done = act()
        for key in before:
            del self.held[key]
        self.held |= after
        if isinstance(done, PendingCheckpoint):
            self.pending = (number, done)
        else:
            self._tell(number, "done")

    def _settled(self) -> None:
        """Acknowledge what was saved in the background, now that it is waited for by whatever comes next."""
        if self.pending is not None:
            number, saved = self.pending
            saved.wait()
            self._tell(number, "done")
            self.pending = None

    def _mine(self, what: str) -> list[str]:
        return [key for key in self.held if key.startswith(what)]

    # Records.

    def _new(self, size: int) -> tuple[str, list[Any]]:
        self.count += 1
        return f"r/{self.number}-{self.count}", [self.rng.randrange(2**31), size, 0]

    def _put(self, key: str, row: list[Any]) -> None:
        self.db.insert("d", made(row[0], row[1]), document_of(row), record_id=key[2:])

    def _insert(self, size: int) -> None:
        key, row = self._new(size)
        self._do("insert", [], {key: row}, lambda: self._put(key, row))

    def _inline(self) -> None:
        self._insert(self.rng.randrange(50))

    def _large(self) -> None:
        self._insert(self.rng.randrange(4000, 60000))

    def _many(self) -> None:
        rows = dict([self._new(100) for _ in range(self.rng.choice([2, 40]))] + [self._new(50000)])
        documents = [document_of(row) for row in rows.values()]
        tensors = [made(seed, size) for seed, size, _ in rows.values()]
        keys = [key[2:] for key in rows]
        self._do("many", [], rows, lambda: self.db.insert_many("d", tensors, documents, record_ids=keys))

    def _update(self) -> None:
        if not (mine := self._mine("r/")):
            return
        key = self.rng.choice(mine)
        seed, size, version = self.held[key]
        version += 1
        self._do(
            "update",
            [key],
            {key: [seed, size, version]},
            lambda: self.db.update_tensor_metadata("d", key[2:], {"version": version}, merge=True),
        )

    def _delete(self) -> None:
        if mine := self._mine("r/"):
            key = self.rng.choice(mine)
            self._do("delete", [key], {}, lambda: self.db.delete_tensor("d", key[2:]))

    def _delete_where(self) -> None:
        half = self.rng.randrange(2)
        gone = [key for key in self._mine("r/") if self.held[key][0] % 2 == half]
        self._do("delete_where", gone, {}, lambda: self.db.delete_where("d", "metadata.seed % 2 = ?", params=[half]))

    def _parts(self) -> tuple[list[str], Held, Callable[[], None]]:
        """Return what a transaction takes and gives: a bit of everything."""
        mine = self._mine("r/")
        gone = [self.rng.choice(mine)] if mine else []
        added = dict([self._new(10), self._new(9000)])
        run, checkpoint, step = self._next("both")
        seed = self.rng.randrange(2**20) + 2**20 * (self.number + 1)

        def act() -> None:
            for key in gone:
                self.db.delete_tensor("d", key[2:])
            for key, row in added.items():
                self._put(key, row)
            self._save_now(run, checkpoint, step)
            self.db.weights.store(weight_of(seed), name=str(seed))

        return gone, {**added, checkpoint: [step], f"w/{seed}": []}, act

    def _transaction(self) -> None:
        self._settled()
        before, after, act = self._parts()

        def whole() -> None:
            with self.db.transaction():
                act()

        self._do("transaction", before, after, whole)

    def _undone(self) -> None:
        self._settled()
        _, _, act = self._parts()

        def whole() -> None:
            try:
                with self.db.transaction():
                    act()
                    raise InterruptedError
            except InterruptedError:
                pass

        self._do("undone", [], {}, whole)

    def _compact(self) -> None:
        self._do("compact", [], {}, lambda: self.db.maintenance.compact(min_dead=self.rng.choice([0, 0.5])))

    def _recode(self) -> None:
        preset = self.rng.choice(["fast", "none", "lossless"])
        self._do("recode", [], {}, lambda: self.db.maintenance.compact(preset=preset))

    def _gc(self) -> None:
        self._do("gc", [], {}, self.db.maintenance.gc)

    def _preset(self) -> None:
        self.db.set_compression_preset(self.rng.choice(["lossless", "none", "fast"]))

    # Datasets of their own, indexes, and looking after.

    def _import(self) -> None:
        seed = self.rng.randrange(2**20) + 2**20 * (self.number + 1)
        self._do("import", [], {f"i/{seed}": []}, lambda: self.db.import_from(name_of(seed), imported(seed)))

    def _delete_dataset(self) -> None:
        if mine := self._mine("i/"):
            key = self.rng.choice(mine)
            self._do("delete_dataset", [key], {}, lambda: self.db.delete_dataset(name_of(int(key[2:]))))

    def _index(self) -> None:
        if "x/tag" in self.held:
            self._do("index", ["x/tag"], {}, lambda: self.db.drop_index("d", "tag"))
        elif self._mine("r/"):
            self._do("index", [], {"x/tag": []}, lambda: self.db.create_index("d", "tag"))

    def _repair(self) -> None:
        self._do("repair", [], {}, self.db.maintenance.repair)

    # Checkpoints. What comes after one that is saved in the background waits for it, said or not.

    def _next(self, run: str) -> tuple[str, str, int]:
        self.count += 1
        step = max((self.held[key][0] for key in self._mine(f"c/{run}/")), default=-1) + 1
        return run, f"c/{run}/{self.number}-{self.count}", step

    def _save_now(self, run: str, key: str, step: int, *, async_: bool = False) -> Any:
        facts = {"state": {"note": note_of(step)}, "metadata": {"number": key.split("/")[2]}, "rng": False}
        return self.db.checkpoints.save(run, state_of(run, step), step=step, async_=async_, **facts)  # type: ignore[call-overload]

    def _save(self) -> None:
        self._settle_now_or_then()
        run, key, step = self._next("sync")
        self._do("save", [], {key: [step]}, lambda: self._save_now(run, key, step))
        self._settled()

    def _save_async(self) -> None:
        self._settled()
        run, key, step = self._next("async")
        self._do("save_async", [], {key: [step]}, lambda: self._save_now(run, key, step, async_=True))

    def _settle_now_or_then(self) -> None:
        if self.rng.random() < 0.5:
            self._settled()

    def _prune(self) -> None:
        self._settled()
        run, last = self.rng.choice(["sync", "async", "both"]), self.rng.randint(1, 3)
        gone = sorted(self._mine(f"c/{run}/"), key=lambda key: self.held[key][0])[:-last]
        if gone:
            self._do("prune", gone, {}, lambda: self.db.checkpoints.prune(run, keep_last=last))

    def _fork(self) -> None:
        self._settled()
        name = f"fork {self.number}"
        if not (mine := self._mine("c/async/")) or self._mine(f"c/{name}/") or name in self.db.checkpoints.runs():
            return
        key = max(mine, key=lambda each: self.held[each][0])
        step = self.held[key][0]
        after = {f"c/{name}/{key.split('/')[2]}": [step]}
        self._do("fork", [], after, lambda: self.db.checkpoints.fork("async", step, name))

    def _delete_run(self) -> None:
        self._settled()
        runs = [run for run in self.db.checkpoints.runs() if run.startswith("fork")]
        if runs:
            run = self.rng.choice(runs)
            self._do("delete_run", self._mine(f"c/{run}/"), {}, lambda: self.db.checkpoints.delete_run(run))

    # Weights.

    def _weight(self) -> None:
        seed = 2 * self.rng.randrange(2**20) + 2**21 * (self.number + 1)
        self._do("weight", [], {f"w/{seed}": []}, lambda: self.db.weights.store(weight_of(seed), name=str(seed)))

    def _delta(self) -> None:
        mine = [int(key[2:]) for key in self._mine("w/") if int(key[2:]) % 2 == 0]
        if mine and f"w/{mine[-1] + 1}" not in self.held:
            base, seed = self._hash_of(mine[-1]), mine[-1] + 1
            act = lambda: self.db.weights.store_delta(weight_of(seed), base, name=str(seed))  # noqa: E731
            self._do("delta", [], {f"w/{seed}": []}, act)

    def _delete_weight(self) -> None:
        if mine := [key for key in self._mine("w/") if int(key[2:]) % 2 == 0]:
            key = self.rng.choice(mine)
            name = self._hash_of(int(key[2:]))
            self._do("delete_weight", [key], {}, lambda: self.db.weights.delete(name))

    def _hash_of(self, seed: int) -> str:
        return self.db.weights.list_weights(name=str(seed))[0].hash


def warm_up() -> None:
    """Make before the fork what is made at first use."""
    with TensorStorage(None) as db:
        db.create_dataset("d")
        db.insert("d", made(1, 10), document_of([1, 1, 0]))
        db.create_index("d", "tag")
        db.import_from("imported", imported(1))
        db.insert_many("d", [made(1, 50000), made(1, 100)], [{"seed": 1}, {"seed": 2}])
        db.checkpoints.save("run", state_of("run", 0), state={"note": note_of(0)}, async_=True).wait()
        db.checkpoints.save("run", state_of("run", 1))
        db.weights.store_delta(weight_of(1), db.weights.store(weight_of(0)))
        db.sql("SELECT record_id, metadata FROM d").to_pandas()


def main() -> None:
    """For each number on stdin fork a writer; say its process id, and in the end how it ended."""
    folder, chosen = sys.argv[1], sys.argv[2].split(",")
    torch.set_num_threads(1)
    warm_up()
    for request in sys.stdin:
        child = os.fork()
        if not child:
            try:
                Writer(folder, int(request), chosen).work()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
