"""A busy training loop, hour after hour: what it keeps stays the same, so what it takes has to stay the same too."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch

from tensordb import TensorStorage

from .crowd_member import descriptors, resident
from .programs import made

KEPT_HOURS = 3
"""Hours of records that are kept; with them the loop's plateau begins."""


@dataclass(frozen=True)
class Figures:
    """What a database and its process take after an hour."""

    disk: int
    catalog: int
    segments: int
    opening: float
    memory: int
    files: int


def an_hour(db: TensorStorage, hour: int, *, rounds: int) -> None:
    """Train for an hour: metrics one by one, activations in pages, checkpoints in the background, and retention."""
    weight = made(0, 30_000).bfloat16()
    for step in range(rounds):
        seed = hour * rounds + step
        db.insert("metrics", made(seed, 40), {"hour": hour, "loss": 1 / (seed + 1), "step": seed})
        if step % 5 == 0:
            db.insert_many("activations", made(seed, 32 * 128).reshape(32, 128), [{"hour": hour}] * 32)
            db.insert("activations", made(seed, 10_000), {"hour": hour})
        if step % 10 == 0:
            weight[seed % 100 :: 100] *= 1.5
            state = {"w": weight, "head": made(seed, 2000)}
            db.checkpoints.save("run", state, step=seed, metrics={"loss": 1 / (seed + 1)}, rng=False, async_=True)
            db.checkpoints.prune("run", keep_last=5, keep_best=2)
            db.update_tensor_metadata("metrics", db.query("metrics", limit=1)[0].id, {"seen": seed}, merge=True)
        if step % 20 == 0:
            db.weights.store(made(seed % 7, 500), name=f"w{seed % 7}")
    for name in ("metrics", "activations"):
        db.delete_where(name, "metadata.hour <= ?", params=[hour - KEPT_HOURS])
    db.maintenance.compact()


def soak(
    folder: Path, *, hours: int, rounds: int, until: Callable[[], bool] = lambda: False, reopen_each: int = 6
) -> list[Figures]:
    """Simulate hours of training and return what was taken after each."""
    measured: list[Figures] = []
    db = TensorStorage(folder)
    try:
        for name in ("metrics", "activations"):
            db.create_dataset(name)
        for hour in range(hours):
            an_hour(db, hour, rounds=rounds)
            if hour % reopen_each == reopen_each - 1:  # a night job looks in; most hours the process just goes on
                db.close()
                db = TensorStorage(folder)
            measured.append(_measure(folder))
            if until():
                break
        assert db.verify().ok
        assert db.count("metrics") == min(len(measured), KEPT_HOURS) * rounds
        assert len(db.checkpoints.list("run")) <= 7
    finally:
        db.close()
    return measured


def _measure(folder: Path) -> Figures:
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    catalog = sum(size for path, size in sizes.items() if path.name.startswith("catalog"))
    begun = time.process_time()
    with TensorStorage(folder) as other:  # another program opens it; processor time, since the machine has other work
        other.count("metrics")
    opening = time.process_time() - begun
    segments = sum(path.suffix == ".seg" for path in sizes)
    return Figures(sum(sizes.values()), catalog, segments, opening, resident(), descriptors())


def assert_plateau(measured: list[Figures], *, memory_slack: int = 48 << 20) -> None:
    """Check that the last third of the time took no more than the third before it, but for noise."""
    third = len(measured) // 3
    middle, last = measured[third : 2 * third], measured[2 * third :]
    slack = {"disk": 2 << 20, "catalog": 1 << 20, "segments": 2, "opening": 0.05, "memory": memory_slack, "files": 4}
    for position, name in enumerate(each.name for each in fields(Figures)):
        before, after = (sorted(astuple(each)[position] for each in part) for part in (middle, last))
        growth = after[len(after) // 2] - before[len(before) // 2]
        assert growth <= slack[name], f"{name} grew from {before} to {after}"


def figures_of(measured: list[Figures]) -> dict[str, float]:
    """Return what was taken in the end, and a third of the time before it."""
    before, after = measured[len(measured) // 3], measured[-1]
    return {
        "hours": len(measured),
        "disk then (kB)": before.disk >> 10,
        "disk at the end (kB)": after.disk >> 10,
        "catalog then (kB)": before.catalog >> 10,
        "catalog at the end (kB)": after.catalog >> 10,
        "opening then (ms)": round(before.opening * 1000),
        "opening at the end (ms)": round(after.opening * 1000),
        "memory then (MB)": before.memory >> 20,
        "memory at the end (MB)": after.memory >> 20,
        "files at the end": after.files,
    }


if __name__ == "__main__":
    import sys

    torch.set_num_threads(1)
    for each in soak(Path(sys.argv[1]), hours=int(sys.argv[2]), rounds=int(sys.argv[3])):
        print(each, os.getpid(), flush=True)
