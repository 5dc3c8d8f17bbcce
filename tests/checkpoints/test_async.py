"""Saving in the background: the moment of the call is what is saved, and nothing of it is forgotten or said twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.programs import finish, in_forked_child, line, running

from tensordb import TensorStorage
from tensordb.checkpoints import saving
from tensordb.errors import ConflictError, DatabaseBusyError, InvalidInputError, StoreError

from .training import Training, assert_same, tensors_of

PATIENCE = 60


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep every other storage from committing for as long as the block lasts."""
    with TensorStorage(folder) as other, other.transaction():
        yield


def failing(monkeypatch: pytest.MonkeyPatch, db: TensorStorage) -> None:
    """Have the disk refuse one write, as a full or broken one does."""
    flush, failures = db._db.payloads.flush, iter([OSError(5, "Input/output error")])

    def refuse() -> None:
        error = next(failures, None)
        if error is not None:
            raise StoreError(f"writing a segment: {error}") from error
        flush()

    monkeypatch.setattr(db._db.payloads, "flush", refuse)


def test_the_moment_of_the_call_is_saved_whatever_changes_right_after(db: TensorStorage) -> None:
    weight = torch.zeros(200_000)
    view, state = weight[::3], {"list": [0], "tensor": weight}
    pending = []
    for step in range(6):
        weight.fill_(step)
        state["list"] = [step]
        state["grown"] = step
        pending.append(db.checkpoints.save("run", {"w": weight, "v": view}, state=state, step=step, async_=True))
        weight.fill_(-1)
        state["list"].append(-1)  # type: ignore[attr-defined]
    for step, each in enumerate(pending):
        assert each.wait(PATIENCE).step == step
        assert each.done()
        tree = db.checkpoints.load("run", step=step)
        assert tree["model"]["w"].unique().tolist() == tree["model"]["v"].unique().tolist() == [step]
        assert tree["state"]["list"] == [step]
    assert [each.step for each in db.checkpoints.list("run")] == list(range(6))


def test_training_goes_on_while_its_state_is_written(tmp_path: Path) -> None:
    training, expected = Training(width=64), []
    with TensorStorage(tmp_path) as db:
        for step in range(5):
            training.step()
            expected.append(training.state())
            db.checkpoints.save("run", training.model, **training.parts(), step=step, async_=True)
            for _ in range(3):
                training.step()
    with TensorStorage(tmp_path) as db:
        for step, state in enumerate(expected):
            assert_same(tensors_of(db.checkpoints.load("run", step=step)), state)
        assert db.verify().ok


def test_a_copy_is_made_only_when_the_one_before_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write, begun, copies = threading.Event(), threading.Semaphore(0), []
    commit = saving.commit

    def late(*arguments: Any) -> Any:
        begun.release()
        assert may_write.wait(PATIENCE)
        return commit(*arguments)

    class Counted:
        def state_dict(self) -> dict[str, torch.Tensor]:
            copies.append(threading.current_thread())
            return {"w": torch.ones(1000)}

        def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
            raise AssertionError("nobody loads")

    monkeypatch.setattr(saving, "commit", late)
    with TensorStorage(tmp_path) as db:
        first = db.checkpoints.save("run", state={"counted": Counted()}, step=1, async_=True)
        assert begun.acquire(timeout=PATIENCE)
        second: list[Any] = []
        waiting = threading.Thread(
            target=lambda: second.append(db.checkpoints.save("run", state={"counted": Counted()}, step=2, async_=True))
        )
        waiting.start()
        waiting.join(0.2)  # long enough for a call that does not wait
        assert waiting.is_alive()
        assert (len(copies), first.done()) == (1, False)
        with pytest.raises(DatabaseBusyError, match=r"0\.01"):
            first.wait(0.01)
        assert "being written" in repr(first)
        may_write.set()
        waiting.join(PATIENCE)
        assert first.wait().step == 1
        assert second[0].wait(PATIENCE).step == 2
        assert [each.step for each in db.checkpoints.list()] == [1, 2]
        assert repr(first) == f"PendingCheckpoint({first.wait()!r})"


def test_the_call_returns_while_another_program_keeps_the_catalog(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db:
        db.checkpoints.save("run", {"w": torch.ones(3)}, step=0)
        with held(tmp_path):
            pending = db.checkpoints.save("run", {"w": torch.ones(3)}, step=1, async_=True)
            assert not pending.done()
        assert pending.wait(PATIENCE).step == 1


def test_an_error_is_raised_where_it_is_waited_for_and_not_again(
    db: TensorStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, db)
    pending = db.checkpoints.save("run", {"w": torch.ones(3)}, async_=True)
    with pytest.raises(StoreError, match="Input/output error"):
        pending.wait(PATIENCE)
    assert "Input/output error" in repr(pending)
    db.checkpoints.wait()
    assert db.checkpoints.runs() == []
    assert db.checkpoints.save("run", {"w": torch.ones(3)}, async_=True).wait(PATIENCE).run == "run"


@pytest.mark.parametrize("call", ["wait", "list", "save", "async", "untag", "transaction", "close"])
def test_an_error_that_nobody_waited_for_is_raised_by_the_next_call_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    db = TensorStorage(tmp_path)
    failing(monkeypatch, db)
    db.checkpoints.save("run", {"w": torch.ones(3)}, async_=True)
    calls = {
        "wait": db.checkpoints.wait,
        "list": db.checkpoints.list,
        "save": lambda: db.checkpoints.save("other", {"w": torch.ones(3)}),
        "async": lambda: db.checkpoints.save("other", {"w": torch.ones(3)}, async_=True),
        "untag": lambda: db.checkpoints.untag("run", "tag"),
        "transaction": db.transaction,
        "close": db.close,
    }
    with pytest.raises(StoreError, match="Input/output error"):
        calls[call]()
    db.close()
    with TensorStorage(tmp_path) as again:
        assert again.checkpoints.runs() == []


def test_what_cannot_be_stored_is_refused_at_once(db: TensorStorage) -> None:
    for state in ({"w": torch.empty(2, device="meta")}, {"hook": print}):
        with pytest.raises(InvalidInputError, match=r"w|hook"):
            db.checkpoints.save("run", state=state, async_=True)
    with pytest.raises(InvalidInputError, match="step"):
        db.checkpoints.save("run", {"w": torch.ones(1)}, step=-1, async_=True)
    db.checkpoints.wait()
    assert db.checkpoints.runs() == []


def test_a_closed_storage_says_so_once(tmp_path: Path) -> None:
    db = TensorStorage(tmp_path)
    db.close()
    with pytest.raises(ConflictError, match="closed"):
        db.checkpoints.save("run", {"w": torch.ones(3)}, async_=True).wait(PATIENCE)
    db.close()


def test_a_transaction_waits_for_what_is_saved_and_saves_nothing_in_the_background(tmp_path: Path) -> None:
    with TensorStorage(tmp_path, busy_timeout=5) as db:
        db.checkpoints.save("run", {"w": torch.randn(300_000)}, step=1, async_=True)
        with db.transaction():
            assert [each.step for each in db.checkpoints.list()] == [1]
            with pytest.raises(ConflictError, match="async_"):
                db.checkpoints.save("run", {"w": torch.ones(3)}, step=2, async_=True)
            db.checkpoints.save("run", {"w": torch.ones(3)}, step=3)
        assert [each.step for each in db.checkpoints.list()] == [1, 3]


def test_closing_waits_for_what_is_being_saved(tmp_path: Path) -> None:
    weight = torch.randn(400_000)
    with TensorStorage(tmp_path) as db:
        db.checkpoints.save("run", {"w": weight}, async_=True)
    with TensorStorage(tmp_path) as db:
        assert torch.equal(db.checkpoints.load("run")["model"]["w"], weight)


FORGETFUL = [
    """
    db = TensorStorage(folder)
    db.checkpoints.save("run", {"w": made(1, 400_000)}, step=1, async_=True)
    """,
    """
    def train():
        db = TensorStorage(folder)
        for step in (0, 1):
            db.checkpoints.save("run", {"w": made(step, 400_000)}, step=step, async_=True)
    train()
    """,
]


def test_a_script_that_forgets_to_wait_ends_in_silence_with_everything_saved(tmp_path: Path) -> None:
    # Each in an interpreter of its own that ends as scripts do; a child of a fork would not.
    for number, code in enumerate(FORGETFUL):
        with running(code.replace("\n    ", "\n"), tmp_path / str(number)) as process:
            assert finish(process) == ""
        with TensorStorage(tmp_path / str(number)) as db:
            found = db.checkpoints.load("run", step=1)["model"]["w"]
            assert torch.equal(found, torch.randn(400_000, generator=torch.Generator().manual_seed(1)))


def test_a_forked_child_does_not_wait_for_its_parents_thread(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db:
        with held(tmp_path):
            pending = db.checkpoints.save("run", {"w": torch.ones(3)}, step=1, async_=True)

            def child() -> None:
                with pytest.raises(ConflictError, match="parent"):
                    pending.wait()
                db.checkpoints.wait()

            in_forked_child(child)
        assert pending.wait(PATIENCE).step == 1
        in_forked_child(lambda: pending.wait())


READER = """
db = TensorStorage(folder, read_only=True)
say("ready")
seen = set()
while True:
    try:
        tree = db.checkpoints.load("run")
    except CheckpointNotFoundError:
        continue
    step = tree["state"]["step"]
    assert list(tree["model"]) == ["a", "b", "c"], step
    assert all((tensor == step).all() for tensor in tree["model"].values()), step
    assert not seen or step >= max(seen), (step, seen)
    seen.add(step)
    if len(seen) == 1:
        say("reading")
    if step == 11:
        break
"""


def test_the_latest_is_never_half_a_checkpoint_to_another_program(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db, running(READER, tmp_path) as reader:
        assert line(reader) == "ready"
        for step in range(12):
            state = {name: torch.full((5000,), float(step)) for name in "abc"}
            db.checkpoints.save("run", state, state={"step": step}, rng=False, async_=True)
            if step == 0:
                assert line(reader) == "reading"
        db.checkpoints.wait()
        finish(reader)
