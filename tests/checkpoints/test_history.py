"""Runs, logs, tags and forks: what there is can be found, and what is deleted leaves no hole."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.programs import finish, line, made, start

from tensordb import TensorStorage
from tensordb.checkpoints.checkpoint import Checkpoint
from tensordb.errors import AlreadyExistsError, CheckpointNotFoundError, InvalidInputError


def put(db: TensorStorage, run: str, step: int | None, **facts: Any) -> Checkpoint:
    """Save a checkpoint whose one tensor says its run and step."""
    return db.checkpoints.save(run, {"w": made(hash((run, step)) % 2**31, 9)}, step=step, rng=False, **facts)


def is_there(db: TensorStorage, run: str, step: int | None, **where: Any) -> bool:
    found = db.checkpoints.load(run, **(where or {"step": step}))["model"]["w"]
    return bool(torch.equal(found, made(hash((run, step)) % 2**31, 9)))


def chain(db: TensorStorage, run_or_id: Any) -> list[tuple[str, int | None]]:
    return [(each.run, each.step) for each in db.checkpoints.log(run_or_id)]


def test_the_id_of_a_deleted_checkpoint_never_comes_back_though_the_clock_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time_ns()
    with TensorStorage(tmp_path) as db:
        first, second = put(db, "run", 0), put(db, "run", 1)
        monkeypatch.setattr(time, "time_ns", lambda: now - 10**12)
        db.checkpoints.delete(second)
    with TensorStorage(tmp_path) as db:  # another process remembers nothing
        third = put(db, "run", 2)
        assert db.checkpoints.delete_run("run") == 2
        fourth = put(db, "other", 3)
        db.checkpoints.fork(fourth, None, "fork")
        ids = [each.id for each in (first, second, third, *db.checkpoints.list())]
        assert ids == sorted(set(ids))
        with pytest.raises(CheckpointNotFoundError):
            db.checkpoints.load(second)


def test_runs_and_their_checkpoints_are_listed_oldest_first(db: TensorStorage) -> None:
    assert (db.checkpoints.runs(), db.checkpoints.list()) == ([], [])
    saved = [put(db, run, step) for run, step in (("b", 3), ("a", 1), ("b", 1), ("a", None))]
    assert db.checkpoints.runs() == ["b", "a"]
    assert db.checkpoints.list() == saved
    assert db.checkpoints.list("b") == [saved[0], saved[2]]
    assert [each.id for each in saved] == sorted(each.id for each in saved)
    assert [each.parent_id for each in saved] == [None, None, saved[0].id, saved[1].id]
    with pytest.raises(CheckpointNotFoundError, match=r"'c'.*'b', 'a'"):
        db.checkpoints.list("c")


def test_a_checkpoint_is_found_by_run_step_tag_id_and_itself(db: TensorStorage) -> None:
    saved = [put(db, "run", step) for step in (1, 2, 2)]
    db.checkpoints.tag("run", "good", step=1)
    first = db.checkpoints.get(saved[0])
    assert first.tags == ("good",)
    assert db.checkpoints.get("run") == db.checkpoints.get("run", step=2) == saved[2]
    assert db.checkpoints.get("run", which="good") == db.checkpoints.get(saved[0].id) == first
    assert is_there(db, "run", 1, which="good")


def test_a_run_that_is_named_like_an_id_hides_no_checkpoint(db: TensorStorage) -> None:
    saved = put(db, "run", 1)
    put(db, saved.id, 2)
    assert db.checkpoints.get(saved).step == 1
    assert db.checkpoints.get(saved.id).step == 2
    assert db.checkpoints.delete(saved).step == 1
    assert db.checkpoints.list("run") == []


def test_the_best_is_smallest_or_largest_and_of_equals_the_newest_and_never_nan(db: TensorStorage) -> None:
    nan, inf = float("nan"), float("inf")
    for step, loss in enumerate([nan, 3, 1.0, 1, inf, nan]):
        put(db, "run", step, metrics={"loss": loss})
    put(db, "run", 9)
    put(db, "other", 7, metrics={"loss": -inf, "accuracy": 2**70})
    get = db.checkpoints.get
    assert get("run", which="best").step == 3
    assert get("run", which="best", metric="loss", mode="max").step == 4
    assert db.checkpoints.best("loss").run == "other"
    assert db.checkpoints.best("loss", "run").step == 3
    assert db.checkpoints.best("accuracy", mode="max").metrics["accuracy"] == 2**70
    assert is_there(db, "run", 3, which="best")


def test_what_is_best_by_nothing_is_an_error_that_says_what_there_is(db: TensorStorage) -> None:
    put(db, "run", 0, metrics={"nan": float("nan")})
    with pytest.raises(CheckpointNotFoundError, match="'nan'"):
        db.checkpoints.get("run", which="best")
    put(db, "run", 1, metrics={"loss": 1, "accuracy": 1})
    with pytest.raises(InvalidInputError, match="'accuracy', 'loss', 'nan'"):
        db.checkpoints.get("run", which="best")
    with pytest.raises(CheckpointNotFoundError, match="'los'"):
        db.checkpoints.best("los", "run")
    with pytest.raises(CheckpointNotFoundError, match="'missing'"):
        db.checkpoints.best("loss", "missing")
    with pytest.raises(InvalidInputError, match="'middle'"):
        db.checkpoints.best("loss", mode="middle")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        db.checkpoints.best(3)  # type: ignore[arg-type]


def test_a_log_goes_over_forks_and_has_no_holes_where_checkpoints_were_deleted(db: TensorStorage) -> None:
    saved = {step: put(db, "main", step) for step in range(5)}
    db.checkpoints.fork("main", 3, "side")
    put(db, "side", 10)
    assert chain(db, "side") == [("side", 10), ("side", 3), ("main", 3), ("main", 2), ("main", 1), ("main", 0)]
    assert chain(db, saved[1]) == [("main", 1), ("main", 0)]
    for step in (2, 3, 0):
        db.checkpoints.delete("main", step=step)
    assert chain(db, "side") == [("side", 10), ("side", 3), ("main", 1)]
    db.checkpoints.prune("main", keep_last=1)
    assert chain(db, "side") == [("side", 10), ("side", 3)]
    assert chain(db, "main") == [("main", 4)]
    db.checkpoints.delete_run("main")
    assert chain(db, "side") == [("side", 10), ("side", 3)]
    assert db.checkpoints.list("side")[0].parent_id is None


def test_a_deleted_run_in_the_middle_leaves_its_forks_with_the_run_before(db: TensorStorage) -> None:
    put(db, "a", 1)
    db.checkpoints.fork("a", None, "b")
    put(db, "b", 2)
    db.checkpoints.fork("b", None, "c")
    assert db.checkpoints.delete_run("b") == 2
    assert chain(db, "c") == [("c", 2), ("a", 1)]
    assert torch.equal(db.checkpoints.load("c")["model"]["w"], made(hash(("b", 2)) % 2**31, 9))


def test_a_tag_stays_where_it_is_unless_it_is_moved_by_force(db: TensorStorage) -> None:
    put(db, "run", 1)
    put(db, "run", 2)
    put(db, "other", 1)
    db.checkpoints.tag("run", "good", step=1)
    assert db.checkpoints.tag("run", "good", step=1).tags == ("good",)
    with pytest.raises(AlreadyExistsError, match=r"step 1.*force=True"):
        db.checkpoints.tag("run", "good", step=2)
    assert db.checkpoints.get("run", which="good").step == 1
    assert db.checkpoints.tag("run", "good", step=2, force=True).step == 2
    assert db.checkpoints.get("run", step=1).tags == ()
    assert db.checkpoints.tag("other", "good").run == "other"
    db.checkpoints.untag("run", "good")
    assert db.checkpoints.get("other", which="good").step == 1
    with pytest.raises(CheckpointNotFoundError, match="'good'"):
        db.checkpoints.untag("run", "good")
    with pytest.raises(CheckpointNotFoundError, match="'nothing'"):
        db.checkpoints.untag("nothing", "good")


def test_tags_go_with_their_checkpoint_and_are_not_forked(db: TensorStorage) -> None:
    put(db, "run", 1)
    put(db, "run", 2)
    for tag in ("b", "a"):
        db.checkpoints.tag("run", tag, step=1)
    assert db.checkpoints.fork("run", None, "copy", which="a").tags == ()
    assert db.checkpoints.delete("run", which="a").tags == ("a", "b")
    with pytest.raises(CheckpointNotFoundError, match="tags: none"):
        db.checkpoints.get("run", which="b")
    assert db.checkpoints.tag("run", "a").step == 2


@pytest.mark.parametrize("tag", ["latest", "best", "", " ", "a\0b", "\ud800", 3, None])
def test_names_that_mean_something_else_or_nothing_are_no_tags(db: TensorStorage, tag: Any) -> None:
    put(db, "run", 1)
    with pytest.raises(InvalidInputError):
        db.checkpoints.tag("run", tag)
    assert db.checkpoints.get("run").tags == ()


def test_a_fork_goes_its_own_way(db: TensorStorage) -> None:
    source = put(db, "run", 4, epoch=2, metrics={"loss": 0.5}, metadata={"note": "ü"})
    forked = db.checkpoints.fork(source, None, "copy")
    assert forked.parent_id == source.id
    assert (forked.step, forked.epoch, forked.metrics, forked.metadata) == (4, 2, {"loss": 0.5}, {"note": "ü"})
    put(db, "copy", 5)
    assert db.checkpoints.get("run").step == 4
    for name in ("run", "copy"):
        with pytest.raises(AlreadyExistsError, match=repr(name)):
            db.checkpoints.fork("run", None, name)
    with pytest.raises(CheckpointNotFoundError):
        db.checkpoints.fork("run", 99, "third")
    assert db.checkpoints.runs() == ["run", "copy"]


def test_what_was_deleted_is_not_found_and_its_run_goes_on(db: TensorStorage) -> None:
    gone = put(db, "run", 1)
    assert db.checkpoints.delete("run") == gone
    assert db.checkpoints.runs() == ["run"]
    for act in (db.checkpoints.get, db.checkpoints.load, db.checkpoints.delete, db.checkpoints.log):
        for name in ("run", gone.id, gone):
            with pytest.raises(CheckpointNotFoundError):
                act(name)
    assert db.checkpoints.resume("run") is None
    assert put(db, "run", 2).parent_id is None
    assert db.checkpoints.delete_run("run") == 1
    with pytest.raises(CheckpointNotFoundError):
        db.checkpoints.delete_run("run")


def test_runs_tags_and_forks_are_part_of_a_transaction(db: TensorStorage) -> None:
    put(db, "run", 1)

    def changes() -> None:
        with db.transaction():
            put(db, "run", 2)
            db.checkpoints.tag("run", "good")
            db.checkpoints.fork("run", None, "copy")
            db.checkpoints.delete("run", step=1)
            assert db.checkpoints.runs() == ["run", "copy"]
            raise RuntimeError("changed my mind")

    with pytest.raises(RuntimeError, match="changed my mind"):
        changes()
    assert [(each.run, each.step, each.tags) for each in db.checkpoints.list()] == [("run", 1, ())]
    with db.transaction():
        db.checkpoints.delete_run("run")
        put(db, "run", 3)
        for tag in ("good", "good", "best so far"):
            db.checkpoints.tag("run", tag)
            db.checkpoints.untag("run", tag)
        db.checkpoints.tag("run", "good")
    assert [(each.step, each.tags) for each in db.checkpoints.list("run")] == [(3, ("good",))]
    assert db.verify().ok


HELL = [
    "ü/日本語/🦆/e\u0301",
    "\u202eabc\u200b",
    "'; DROP TABLE tensordb.runs; --",
    '"quoted" \\ `name` $1 ? % {x}',
    "../../etc/passwd",
    "a\nb\tc\r",
    " leading and trailing ",
    "x" * 10_000,
    "🦆" * 10_000,
    "NULL",
    "CON",
    "e\u0301",
    "é",
]


def test_runs_and_tags_and_metrics_may_have_any_name(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db:
        for number, name in enumerate(HELL):
            put(db, name, number, metrics={name: number}, metadata={name: name})
            db.checkpoints.tag(name, name)
    with TensorStorage(tmp_path) as db:
        assert db.checkpoints.runs() == HELL
        for number, name in enumerate(HELL):
            found = db.checkpoints.get(name, which=name)
            assert (found.run, found.step, found.tags) == (name, number, (name,))
            assert (found.metrics, found.metadata) == ({name: number}, {name: name})
            assert db.checkpoints.best(name, name) == found
            assert is_there(db, name, number, which=name)
        for number, name in enumerate(HELL):
            assert db.checkpoints.fork(name, None, f"{name}'").step == number
            assert db.checkpoints.delete_run(name) == 1
        assert db.checkpoints.runs() == [f"{name}'" for name in HELL]
        assert db.verify().ok


@pytest.mark.parametrize("name", ["", " ", "\t\n", "a\0b", "\0", "\ud800", "a\udfff", 3, None, b"run", ("run",)])
def test_names_that_cannot_be_stored_are_refused_everywhere(name: Any) -> None:
    with TensorStorage(None) as db:
        put(db, "run", 1)
        checkpoints = db.checkpoints
        for act in (
            lambda: checkpoints.save(name, {"w": torch.ones(1)}),
            lambda: checkpoints.fork("run", None, name),
            lambda: checkpoints.load(name),
            lambda: checkpoints.delete_run(name),
            lambda: checkpoints.untag(name, "t"),
            lambda: checkpoints.prune(name, keep_last=1),
            lambda: checkpoints.save("run", {"w": torch.ones(1)}, metrics={name: 1}),
            lambda: checkpoints.get("run", which=name),
        ):
            with pytest.raises(InvalidInputError):
                act()
        assert [each.step for each in checkpoints.list()] == [1]


SAVER = """
db, number = TensorStorage(folder), int(sys.argv[2])
say("ready")
sys.stdin.readline()
ids = []
for step in range(8):
    state = {"own": made(1000 + 100 * number + step, 3000), "common": made(step, 3000)}
    ids.append(db.checkpoints.save("run", state, step=100 * number + step, rng=False).id)
print(json.dumps(ids))
"""


def test_two_programs_may_save_into_one_run_at_once(tmp_path: Path) -> None:
    savers = [start(SAVER, tmp_path, number) for number in range(2)]
    for saver in savers:
        assert line(saver) == "ready"
    for saver in savers:
        assert saver.stdin is not None
        saver.stdin.write("go\n")
    ids = [json.loads(finish(saver)) for saver in savers]
    with TensorStorage(tmp_path) as db:
        saved = db.checkpoints.list("run")
        assert {each.id for each in saved} == {*ids[0], *ids[1]}
        assert [each.parent_id for each in saved] == [None, *(each.id for each in saved[:-1])]
        for each in saved:
            loaded = db.checkpoints.load(each)["model"]
            assert torch.equal(loaded["own"], made(1000 + (each.step or 0), 3000))
            assert torch.equal(loaded["common"], made((each.step or 0) % 100, 3000))
        assert db.sql("SELECT count(DISTINCT content_id) AS n FROM history.tensors").to_pylist() == [{"n": 24}]
        assert db.verify().ok
