"""A small database with something of everything, things to do with it, and how to tell what it holds.

Every scenario is one promise: when it failed, the database is as before or as after, and never in between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tensordb import TensorStorage

from .programs import made

Contents = dict[str, Any]
Act = Callable[[TensorStorage], object]
LARGE = 90_000  # several chunks: written while it is encoded


def build(folder: Path) -> None:
    """Make the database that scenarios begin with; its segment was closed in good order."""
    with TensorStorage(folder) as db:
        db.create_dataset("d")
        for i in range(4):
            db.insert("d", made(i, 20 + i), {"i": i}, record_id=f"small{i}")
        for i in range(3):
            db.insert("d", made(10 + i, 6_000), {"i": 10 + i, "name": f"{i}"}, record_id=f"large{i}")
        db.insert_many("d", [made(20 + i, 300) for i in range(8)], record_ids=[f"page{i}" for i in range(8)])
        for step in range(2):
            db.checkpoints.save("run", state(step), step=step, rng=False)
        _weights(db)


def state(step: int) -> dict[str, torch.Tensor]:
    """Return what a checkpoint holds: weights that drift, so that later ones are differences, and some of its own."""
    weight = made(0, 20_000).bfloat16()
    weight[step::50] *= 2
    return {"w": weight, "own": made(100 + step, 2_000)}


def _weights(db: TensorStorage) -> None:
    key = db.weights.store(made(50, 4_000), name="w")
    db.weights.store_delta(made(50, 4_000) + 0.001, key, name="w2")


def contents(db: TensorStorage) -> Contents:
    """Return everything that the database holds, every tensor read, in values that compare."""
    found: Contents = {}
    for name in db.list_datasets():
        found[f"dataset {name}"] = db.count(name)
        found |= {f"index of {name} on {field}": True for field in db.list_indexes(name)}
        for record in db.scan(name):
            found[f"{name}/{record.id}"] = (digest(record.tensor), repr(record.metadata))
    for each in db.checkpoints.list():
        tree = db.checkpoints.load(each.run, step=each.step)["model"]
        found[f"{each.run}@{each.step}"] = {key: digest(value) for key, value in tree.items()} | {
            "tags": list(each.tags)
        }
    for weight in db.weights.list_weights():
        found[f"weight {weight.hash}"] = (digest(db.weights.load(weight.hash)), weight.name)
    for delta in db.weights.list_deltas():
        found[f"delta {delta.hash}"] = digest(db.weights.load_delta(delta.hash))
    return found


def digest(tensor: torch.Tensor) -> str:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.blake2b(raw, digest_size=8).hexdigest()}"


def _transaction(db: TensorStorage) -> None:
    with db.transaction():
        db.insert("d", made(3, 50), {"i": 99}, record_id="t1")
        db.insert("d", made(4, 6_000), record_id="t2")
        db.delete_tensor("d", "large0")
        db.update_tensor_metadata("d", "small1", {"i": -1})


def _insert_many(db: TensorStorage) -> None:
    tensors = [made(70 + i, 400) for i in range(6)] + [made(90, LARGE), made(91, 7_000)]
    db.insert_many("d", tensors, [{"n": i} for i in range(8)], record_ids=[f"many{i}" for i in range(8)])


def _import(db: TensorStorage) -> None:
    db.import_from(
        "imported",
        {"x": torch.stack([made(i, 3_000) for i in range(3)]), "i": [1, 2, 3], "id": list("xyz")},
        record_id="id",
    )


def _compact(db: TensorStorage) -> None:
    db.maintenance.compact(min_dead=0)


def _insert_and_close(db: TensorStorage) -> None:
    db.insert("d", made(1, 7_000), record_id="new")
    db.close()


SCENARIOS: dict[str, Act] = {
    "insert a small one": lambda db: db.insert("d", made(1, 30), {"i": 7}, record_id="new"),
    "insert": lambda db: db.insert("d", made(1, 7_000), {"x": "text"}, record_id="new"),
    "insert a large one": lambda db: db.insert("d", made(1, LARGE), record_id="new"),
    "insert many": _insert_many,
    "update": lambda db: db.update_tensor_metadata("d", "small2", {"new field": [1, 2]}, merge=True),
    "delete": lambda db: db.delete_tensor("d", "large1"),
    "delete where": lambda db: db.delete_where("d", "metadata.i >= 10"),
    "create a dataset": lambda db: db.create_dataset("e", {"shape": [2], "metadata": {"a": "int?"}}),
    "delete a dataset": lambda db: db.delete_dataset("d"),
    "transaction": _transaction,
    "compact": _compact,
    "gc": lambda db: db.maintenance.gc(),
    "save": lambda db: db.checkpoints.save("run", state(2), step=2, rng=False),
    "save in the background": lambda db: db.checkpoints.save("new", state(9), step=0, rng=False, async_=True).wait(),
    "prune": lambda db: db.checkpoints.prune("run", keep_last=1),
    "fork": lambda db: db.checkpoints.fork("run", 1, "other"),
    "store a weight": lambda db: db.weights.store(made(51, 9_000), name="x"),
    "store a delta": lambda db: db.weights.store_delta(
        made(50, 4_000) + 0.002, db.weights.list_weights()[0].hash, name="w3"
    ),
    "close": _insert_and_close,
    "index": lambda db: db.create_index("d", "name"),
    "import": _import,
    "compact under another preset": lambda db: db.maintenance.compact("d", preset="fast"),
    "delete a run": lambda db: db.checkpoints.delete_run("run"),
    "tag": lambda db: db.checkpoints.tag("run", "best of all", step=1),
    "delete a weight": lambda db: db.weights.delete(db.weights.list_weights()[0].hash),
}
LONG = ("index", "import", "compact under another preset", "delete a run", "tag", "delete a weight")
"""Those that only the long form goes through call by call."""
