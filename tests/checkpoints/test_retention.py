"""Pruning keeps what was asked for, what has a tag, and the newest; nothing else, and nothing less."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tensordb import TensorStorage
from tensordb.checkpoints.retention import PruneReport
from tensordb.errors import CheckpointNotFoundError, InvalidInputError

LOSSES = [9.0, 3.0, float("nan"), 5.0, 3.0, None, 7.0, 8.0]
"""Of the checkpoints of steps 0, 10, 20, …; the one of step 50 has no metric."""


def filled(db: TensorStorage, run: str = "run") -> None:
    """Save a checkpoint for each of `LOSSES`, of drifting weights, a constant and a tensor of its own."""
    weight = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    for number, loss in enumerate(LOSSES):
        weight = weight.clone()
        weight[number::97] *= 2
        state = {"w": weight, "frozen": torch.ones(9_000), "own": torch.full((5,), float(number))}
        metrics = None if loss is None else {"loss": loss}
        db.checkpoints.save(run, state, step=10 * number, metrics=metrics, rng=False)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with such a run, to be copied."""
    folder = tmp_path_factory.mktemp("sample") / "db"
    with TensorStorage(folder) as db:
        filled(db)
    return folder


@pytest.fixture(scope="module")
def expected(sample: Path) -> dict[int, Any]:
    """What each of its checkpoints gives."""
    with TensorStorage(sample, read_only=True) as db:
        return {step: db.checkpoints.load("run", step=step) for step in range(0, 80, 10)}


@pytest.fixture
def db(sample: Path, tmp_path: Path) -> Iterator[TensorStorage]:
    shutil.copytree(sample, tmp_path / "db")
    with TensorStorage(tmp_path / "db") as storage:
        yield storage


def steps(db: TensorStorage, run: str = "run") -> list[int | None]:
    return [each.step for each in db.checkpoints.list(run)]


def facts(report: PruneReport) -> tuple[list[str], list[str], int]:
    return [each.id for each in report.removed], [each.id for each in report.kept], report.nbytes_freed


def payload_nbytes(db: TensorStorage) -> int:
    return int(db.sql("SELECT coalesce(sum(stored_nbytes), 0) AS n FROM tensordb.objects").to_pylist()[0]["n"])


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ({"keep_last": 1}, [70]),
        ({"keep_last": 3}, [50, 60, 70]),
        ({"keep_last": 99}, [0, 10, 20, 30, 40, 50, 60, 70]),
        ({"keep_best": 1}, [40, 70]),
        ({"keep_best": 2, "metric": "loss"}, [10, 40, 70]),
        ({"keep_best": 2, "mode": "max"}, [0, 70]),
        ({"keep_best": 99}, [0, 10, 30, 40, 60, 70]),
        ({"keep_every": 30}, [0, 30, 60, 70]),
        ({"keep_every": 1000}, [0, 70]),
        ({"keep_within": dt.timedelta(hours=1)}, [0, 10, 20, 30, 40, 50, 60, 70]),
        ({"keep_within": dt.timedelta(0)}, [70]),
        ({"keep_within": dt.timedelta.max}, [0, 10, 20, 30, 40, 50, 60, 70]),
        ({"keep_last": 2, "keep_best": 1, "keep_every": 40}, [0, 40, 60, 70]),
        ({"keep_best": 1, "mode": "max", "keep_within": dt.timedelta(0)}, [0, 70]),
    ],
)
def test_each_policy_keeps_what_it_says_and_all_of_them_their_union(
    db: TensorStorage, policy: dict[str, Any], kept: list[int], expected: dict[int, Any]
) -> None:
    planned = db.checkpoints.prune("run", **policy, dry_run=True)
    assert len(steps(db)) == len(LOSSES)
    before = payload_nbytes(db)
    report = db.checkpoints.prune("run", **policy)
    assert facts(planned) == facts(report)
    assert (planned.dry_run, report.dry_run) == (True, False)
    assert steps(db) == kept
    assert [each.step for each in report.kept] == kept
    assert [each.parent_id for each in report.kept] == [each.parent_id for each in db.checkpoints.list("run")]
    assert before - payload_nbytes(db) == report.nbytes_freed
    for step in kept:
        tree = db.checkpoints.load("run", step=step)
        assert all(torch.equal(tree["model"][name], expected[step]["model"][name]) for name in tree["model"])
    assert db.verify().ok
    assert db.checkpoints.prune("run", **policy).removed == ()


def test_tags_keep_their_checkpoints(db: TensorStorage) -> None:
    db.checkpoints.tag("run", "first", step=0)
    db.checkpoints.tag("run", "middle", step=30)
    db.checkpoints.prune("run", keep_last=1)
    assert steps(db) == [0, 30, 70]
    db.checkpoints.untag("run", "first")
    db.checkpoints.prune("run", keep_last=1)
    assert steps(db) == [30, 70]
    assert db.checkpoints.get("run", which="middle").step == 30


def test_pruning_leaves_other_runs_alone_and_counts_as_freed_only_what_they_do_not_share(db: TensorStorage) -> None:
    forked = db.checkpoints.fork("run", 30, "copy")
    planned = db.checkpoints.prune("run", keep_last=1, dry_run=True)
    report = db.checkpoints.prune("run", keep_last=1)
    assert facts(planned) == facts(report)
    assert [each.step for each in db.checkpoints.list("copy")] == [30]
    assert db.checkpoints.load(forked)["model"]["own"].tolist() == [3.0] * 5
    freed = db.checkpoints.delete_run("copy")
    assert freed == 1
    assert db.verify().ok


def test_a_metric_that_no_checkpoint_has_deletes_nothing(db: TensorStorage) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"'los'.*'loss'"):
        db.checkpoints.prune("run", keep_best=1, metric="los")
    db.checkpoints.save("run", {"w": torch.ones(3)}, step=80, metrics={"loss": 1, "accuracy": 0.5})
    with pytest.raises(InvalidInputError, match="'accuracy', 'loss'"):
        db.checkpoints.prune("run", keep_best=1)
    assert len(steps(db)) == len(LOSSES) + 1


def test_checkpoints_without_a_step_are_no_multiples(db: TensorStorage) -> None:
    for step in (None, 0, None, 5, None):
        db.checkpoints.save("other", {"w": torch.ones(3)}, step=step, rng=False)
    db.checkpoints.prune("other", keep_every=5)
    assert steps(db, "other") == [0, 5, None]


def test_a_run_without_checkpoints_has_nothing_to_prune(db: TensorStorage) -> None:
    db.checkpoints.save("empty", {"w": torch.ones(3)})
    db.checkpoints.delete("empty")
    report = db.checkpoints.prune("empty", keep_last=1, keep_best=1)
    assert (report.removed, report.kept, report.nbytes_freed) == ((), (), 0)
    with pytest.raises(CheckpointNotFoundError, match="'other'"):
        db.checkpoints.prune("other", keep_last=1)


NONSENSE: list[dict[str, Any]] = [
    {},
    {"keep_last": 0},
    {"keep_last": -1},
    {"keep_last": True},
    {"keep_last": 1.0},
    {"keep_best": 0},
    {"keep_best": "2"},
    {"keep_every": 0},
    {"keep_within": 3600},
    {"keep_within": dt.timedelta(seconds=-1)},
    {"metric": "loss"},
    {"keep_last": 1, "metric": "loss"},
    {"keep_best": 1, "mode": "lowest"},
    {"keep_last": 1, "mode": "lowest"},
]


def test_a_policy_that_says_nothing_or_nonsense_deletes_nothing(db: TensorStorage) -> None:
    for policy in NONSENSE:
        with pytest.raises(InvalidInputError):
            db.checkpoints.prune("run", **policy)
    assert len(steps(db)) == len(LOSSES)


def test_compact_gives_back_to_the_disk_what_pruning_freed(db: TensorStorage, tmp_path: Path) -> None:
    def on_disk() -> int:
        return sum(path.stat().st_size for path in (tmp_path / "db" / "segments").iterdir())

    weight = torch.empty(0)
    for seed in range(3):
        weight = torch.randn(50_000, generator=torch.Generator().manual_seed(seed))
        db.checkpoints.save("large", {"w": weight}, step=seed, rng=False)
    before = on_disk()
    freed = db.checkpoints.prune("large", keep_last=1).nbytes_freed
    freed += db.checkpoints.prune("run", keep_last=2).nbytes_freed
    assert freed > 300_000
    assert db.maintenance.compact(min_dead=0).nbytes_freed >= freed
    assert before - on_disk() >= freed
    assert torch.equal(db.checkpoints.load("large")["model"]["w"], weight)
    assert steps(db) == [60, 70]
    assert db.verify().ok
