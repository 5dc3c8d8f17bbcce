"""Everything that can be done with checkpoints, in any order, against a plain dict: nothing is lost and nothing stays.

`TENSORDB_MODEL_EXAMPLES` sets how many sequences are tried (default 10), `TENSORDB_MODEL_STEPS` how long they are.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tensordb import TensorStorage
from tensordb.checkpoints.checkpoint import Checkpoint
from tests.stateful.references import assert_every_reference_is_counted, assert_nothing_is_left

from .training import assert_same

EXAMPLES = int(os.environ.get("TENSORDB_MODEL_EXAMPLES", "7"))
STEPS = int(os.environ.get("TENSORDB_MODEL_STEPS", "25"))
RUNS = ("a", "b", "c")
TAGS = ("good", "ü")
State = dict[str, torch.Tensor]


class Saved:
    """What a checkpoint must be."""

    def __init__(self, given: Checkpoint, state: State, note: str) -> None:
        self.id = given.id
        self.step = given.step
        self.parent = given.parent_id
        self.state = state
        self.note = note
        self.tags: set[str] = set()


class CheckpointsLikeADict(RuleBasedStateMachine):
    """`self.runs` is the model: what every run holds, oldest first."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="tensordb-model-"))
        self.db = TensorStorage(self.folder)
        self.runs: dict[str, list[Saved]] = {}
        self.rows: dict[str, torch.Tensor] = {}
        self.weights: dict[str, State] = {}
        self.count = 0

    @initialize()
    def make_a_dataset(self) -> None:
        self.db.create_dataset("d")

    def _random(self, *shape: int) -> torch.Tensor:
        self.count += 1
        return torch.randn(*shape, generator=torch.Generator().manual_seed(self.count))

    def _start(self) -> State:
        return {"w": self._random(60, 100).bfloat16(), "v": self._random(5000), "b": self._random(7)}

    @rule(
        run=st.sampled_from(RUNS),
        moved=st.sampled_from(["w", "v", "b", "all", "nothing", "anew"]),
        preset=st.sampled_from([None, None, None, "none", "lossless"]),
        large=st.booleans(),
        in_background=st.booleans(),
    )
    def save(self, run: str, moved: str, preset: str | None, large: bool, in_background: bool) -> None:
        if run not in self.weights or moved == "anew":
            self.weights[run] = self._start()
        before = self.weights[run]
        state = {
            key: value if moved not in (key, "all") else (value.float() * (1 + 1e-3 * self._random(*value.shape)))
            for key, value in before.items()
        }
        state = {key: value.to(before[key].dtype) for key, value in state.items()}
        self.weights[run] = state
        note = f"{self.count} " * (9000 if large else 1)
        kept = {**state, "frozen": torch.ones(3000), "tied": state["v"]}
        step = len(self.runs.get(run, ())) % 4
        tree: dict[str, Any] = {"state": {"note": note}, "step": step, "preset": preset, "rng": False}
        if in_background:
            given = self.db.checkpoints.save(run, kept, **tree, async_=True).wait()
        else:
            given = self.db.checkpoints.save(run, kept, **tree)
        saved = self.runs.setdefault(run, [])
        assert given.parent_id == (saved[-1].id if saved else None)
        saved.append(Saved(given, kept, note))

    def _pick(self, data: st.DataObject) -> tuple[str, Saved]:
        filled = sorted(run for run, saved in self.runs.items() if saved)
        run = data.draw(st.sampled_from(filled))
        return run, self.runs[run][data.draw(st.integers(0, len(self.runs[run]) - 1))]

    def _remove(self, run: str, gone: list[Saved]) -> None:
        parents = {each.id: each.parent for each in gone}
        self.runs[run] = [each for each in self.runs[run] if each.id not in parents]
        for saved in self.runs.values():
            for each in saved:
                while each.parent in parents:
                    each.parent = parents[each.parent]

    def anything(self) -> bool:
        return any(self.runs.values())

    @precondition(anything)
    @rule(data=st.data(), by_step=st.booleans())
    def delete(self, data: st.DataObject, by_step: bool) -> None:
        run, saved = self._pick(data)
        if by_step:
            saved = [each for each in self.runs[run] if each.step == saved.step][-1]
            self.db.checkpoints.delete(run, step=saved.step)
        else:
            self.db.checkpoints.delete(saved.id)
        self._remove(run, [saved])

    @precondition(anything)
    @rule(data=st.data(), last=st.integers(1, 3), every=st.sampled_from([None, 2]))
    def prune(self, data: st.DataObject, last: int, every: int | None) -> None:
        run, _ = self._pick(data)
        saved = self.runs[run]
        stays = {each.id for each in saved[-last:]} | {each.id for each in saved if each.tags}
        if every is not None:
            stays |= {each.id for each in saved if each.step is not None and each.step % every == 0}
        gone = [each for each in saved if each.id not in stays]
        planned = self.db.checkpoints.prune(run, keep_last=last, keep_every=every, dry_run=True)
        report = self.db.checkpoints.prune(run, keep_last=last, keep_every=every)
        assert [each.id for each in planned.removed] == [each.id for each in report.removed] == [e.id for e in gone]
        assert planned.nbytes_freed == report.nbytes_freed
        self._remove(run, gone)

    @precondition(anything)
    @rule(data=st.data(), tag=st.sampled_from(TAGS))
    def tag(self, data: st.DataObject, tag: str) -> None:
        run, saved = self._pick(data)
        self.db.checkpoints.tag(saved.id, tag, force=True)
        for each in self.runs[run]:
            each.tags.discard(tag)
        saved.tags.add(tag)

    @precondition(lambda self: any(each.tags for saved in self.runs.values() for each in saved))
    @rule(data=st.data())
    def untag(self, data: st.DataObject) -> None:
        tagged = [(run, each) for run, saved in self.runs.items() for each in saved if each.tags]
        run, saved = tagged[data.draw(st.integers(0, len(tagged) - 1))]
        tag = sorted(saved.tags)[0]
        self.db.checkpoints.untag(run, tag)
        saved.tags.discard(tag)

    @precondition(lambda self: self.anything() and len(self.runs) < len(RUNS) + 2)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        _, saved = self._pick(data)
        name = next(name for name in (*RUNS, "fork of a fork", "last") if name not in self.runs)
        given = self.db.checkpoints.fork(saved.id, None, name)
        assert given.parent_id == saved.id
        self.runs[name] = [Saved(given, saved.state, saved.note)]
        self.weights[name] = {key: value for key, value in saved.state.items() if key in ("w", "v", "b")}

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def delete_run(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(sorted(self.runs)))
        assert self.db.checkpoints.delete_run(run) == len(self.runs[run])
        self._remove(run, self.runs[run])
        del self.runs[run]

    @precondition(anything)
    @rule(data=st.data())
    def share_with_a_dataset(self, data: st.DataObject) -> None:
        _, saved = self._pick(data)
        key = f"row {len(self.rows)}"
        self.db.insert("d", saved.state["v"], record_id=key)
        self.rows[key] = saved.state["v"]

    @precondition(lambda self: self.rows)
    @rule()
    def empty_the_dataset(self) -> None:
        self.db.delete_where("d", "true")
        self.rows = {}

    @rule(min_dead=st.sampled_from([0.0, 0.5]))
    def compact(self, min_dead: float) -> None:
        self.db.maintenance.compact(min_dead=min_dead)

    @rule()
    def gc(self) -> None:
        self.db.maintenance.gc()

    @rule()
    def reopen(self) -> None:
        self.db.close()
        self.db = TensorStorage(self.folder)

    @precondition(anything)
    @rule(data=st.data())
    def undo(self, data: st.DataObject) -> None:
        """Do several things in a transaction that is rolled back."""
        run, saved = self._pick(data)
        try:
            with self.db.transaction():
                self.db.checkpoints.save(run, {"w": self._random(4000)}, rng=False)
                self.db.checkpoints.delete(saved.id)
                self.db.checkpoints.fork(run, None, "never")
                self.db.checkpoints.delete_run(run)
                raise KeyError
        except KeyError:
            pass

    @invariant()
    def what_is_listed_is_what_there_is(self) -> None:
        assert set(self.db.checkpoints.runs()) == set(self.runs)
        for run, saved in self.runs.items():
            expected = [(each.id, each.step, each.parent, tuple(sorted(each.tags))) for each in saved]
            assert [(c.id, c.step, c.parent_id, c.tags) for c in self.db.checkpoints.list(run)] == expected

    @invariant()
    def everything_loads_bit_for_bit(self) -> None:
        for run, saved in self.runs.items():
            for each in saved:
                self._check(self.db.checkpoints.load(each.id), each)
            if saved:
                self._check(self.db.checkpoints.load(run), saved[-1])
                self._check(self.db.checkpoints.load(run, step=saved[-1].step), saved[-1])
            for each in saved:
                for tag in each.tags:
                    self._check(self.db.checkpoints.load(run, which=tag), each)

    def _check(self, tree: dict[str, Any], saved: Saved) -> None:
        assert_same(tree["model"], saved.state)
        assert tree["model"]["tied"] is tree["model"]["v"]
        assert tree["state"]["note"] == saved.note

    @invariant()
    def every_reference_is_counted(self) -> None:
        assert_every_reference_is_counted(self.db)

    def teardown(self) -> None:
        try:
            assert self.db.verify().ok
            for key, tensor in self.rows.items():
                assert torch.equal(self.db.get_tensor_by_id("d", key).tensor, tensor)
            for run in self.db.checkpoints.runs():
                self.db.checkpoints.delete_run(run)
            self.db.delete_where("d", "true")
            assert_nothing_is_left(self.db)
        finally:
            self.db.close()
            shutil.rmtree(self.folder)


def test_checkpoints_are_a_dict_that_is_never_wrong() -> None:
    run_state_machine_as_test(
        CheckpointsLikeADict,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
