"""Checkpoints and weights beside the datasets, which share their objects, in the same transactions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from tensordb import (
    AlreadyExistsError,
    Checkpoint,
    CheckpointNotFoundError,
    ConflictError,
    TensorStorage,
    WeightNotFoundError,
)

from .finding import FoundLikeADict
from .machine import NUMBERS
from .model import Row, Saved, bits_of
from .tensors import DTYPES, LOSSY, SHAPES, assert_within, tensor_of

RUNS = ("a", "b'ü", "c")
TAGS = ("good", "ü")
MOST = 6
"""Checkpoints of a run from which on it is pruned, which keeps the comparing short."""


class EverythingLikeADict(FoundLikeADict):
    """Adds runs, checkpoints, weights and deltas to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.drift: dict[str, dict[str, torch.Tensor]] = {}
        self.looked = 0

    def has_checkpoints(self) -> bool:
        return not self.doomed and any(self.model.runs.values())

    def has_weights(self) -> bool:
        return not self.doomed and bool(self.model.weights)

    # Checkpoints.

    @precondition(lambda self: not self.doomed)
    @rule(
        run=st.sampled_from(RUNS),
        moved=st.sampled_from(["w", "v", "all", "nothing", "anew"]),
        n=NUMBERS,
        large=st.booleans(),
        in_background=st.booleans(),
    )
    def save(self, run: str, moved: str, n: int, large: bool, in_background: bool) -> None:
        state = self._moved(run, moved, n)
        step = len(self.model.runs.get(run, ())) % 4
        note = f"{n} " * (9000 if large else 1)
        facts: dict[str, Any] = {"state": {"note": note}, "step": step, "rng": False}
        if in_background and self.outer:
            with pytest.raises(ConflictError):
                self.db.checkpoints.save(run, state, **facts, async_=True)
            return
        if in_background:
            given = self.db.checkpoints.save(run, state, **facts, async_=True).wait()
        else:
            given = self.db.checkpoints.save(run, state, **facts)
        self._take_over(run, given, state, note)

    def _moved(self, run: str, moved: str, n: int) -> dict[str, torch.Tensor]:
        """Return the next state of a run: weights that drift or stay, and some that datasets hold too."""
        if run not in self.drift or moved == "anew":
            self.drift[run] = {
                "w": tensor_of(4 * n, torch.bfloat16, (60, 100)),
                "v": tensor_of(n, torch.float32, (20_000,)),
            }
        for name, tensor in self.drift[run].items():
            if moved in (name, "all"):
                noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(n))
                self.drift[run][name] = (tensor.float() * (1 + 1e-3 * noise)).to(tensor.dtype)
        return {**self.drift[run], "b": tensor_of(n, torch.float64, (3,)), "tied": self.drift[run]["v"]}

    def _take_over(self, run: str, given: Checkpoint, state: dict[str, torch.Tensor], note: str) -> None:
        saved = self.model.runs.setdefault(run, [])
        assert given.parent_id == (saved[-1].id if saved else None)
        applied = {
            row["name"]: row
            for row in self.db.sql("FROM history.tensors WHERE checkpoint_id = ?", [given.id]).to_pylist()
        }
        read = self.db.checkpoints.load(given.id)["model"]
        assert list(read) == list(state)
        for name, tensor in state.items():
            row = applied.get(f"model.{name}") or applied["model.v"]  # what is tied is stored once
            assert_within(read[name], tensor, row["quantization"], row["max_abs"])
        tensors = {name: bits_of(tensor) for name, tensor in read.items()}
        saved.append(Saved(given.id, given.step, given.parent_id, tensors, note))

    def _pick_saved(self, data: st.DataObject) -> tuple[str, Saved]:
        run = data.draw(st.sampled_from(sorted(run for run, saved in self.model.runs.items() if saved)))
        return run, self.model.runs[run][data.draw(st.integers(0, len(self.model.runs[run]) - 1))]

    @precondition(has_checkpoints)
    @rule(data=st.data(), by_step=st.booleans())
    def delete_checkpoint(self, data: st.DataObject, by_step: bool) -> None:
        run, saved = self._pick_saved(data)
        if by_step:
            saved = [each for each in self.model.runs[run] if each.step == saved.step][-1]
            self.db.checkpoints.delete(run, step=saved.step)
        else:
            self.db.checkpoints.delete(saved.id)
        self.model.forget_checkpoints([saved])
        with pytest.raises(CheckpointNotFoundError):
            self.db.checkpoints.load(saved.id)

    @precondition(has_checkpoints)
    @rule(data=st.data(), last=st.integers(1, 3), every=st.sampled_from([None, 2]))
    def prune(self, data: st.DataObject, last: int, every: int | None) -> None:
        run, _ = self._pick_saved(data)
        saved = self.model.runs[run]
        stays = {each.id for each in saved[-last:]} | {each.id for each in saved if each.tags}
        if every is not None:
            stays |= {each.id for each in saved if each.step is not None and each.step % every == 0}
        gone = [each for each in saved if each.id not in stays]
        planned = self.db.checkpoints.prune(run, keep_last=last, keep_every=every, dry_run=True)
        report = self.db.checkpoints.prune(run, keep_last=last, keep_every=every)
        assert [each.id for each in planned.removed] == [each.id for each in report.removed] == [e.id for e in gone]
        assert planned.nbytes_freed == report.nbytes_freed
        self.model.forget_checkpoints(gone)

    @precondition(has_checkpoints)
    @rule(data=st.data(), tag=st.sampled_from(TAGS), force=st.booleans())
    def tag(self, data: st.DataObject, tag: str, force: bool) -> None:
        run, saved = self._pick_saved(data)
        taken = any(tag in each.tags for each in self.model.runs[run] if each is not saved)
        with self._expecting((AlreadyExistsError, taken and not force)):
            self.db.checkpoints.tag(saved.id, tag, force=force)
        if not taken or force:
            for each in self.model.runs[run]:
                each.tags.discard(tag)
            saved.tags.add(tag)

    @precondition(lambda self: self.has_checkpoints() and any(e.tags for s in self.model.runs.values() for e in s))
    @rule(data=st.data())
    def untag(self, data: st.DataObject) -> None:
        tagged = [(run, each) for run, saved in sorted(self.model.runs.items()) for each in saved if each.tags]
        run, saved = tagged[data.draw(st.integers(0, len(tagged) - 1))]
        tag = min(saved.tags)
        self.db.checkpoints.untag(run, tag)
        saved.tags.discard(tag)

    @precondition(has_checkpoints)
    @rule(data=st.data(), name=st.sampled_from([*RUNS, "fork"]))
    def fork(self, data: st.DataObject, name: str) -> None:
        _, saved = self._pick_saved(data)
        taken = name in self.model.runs
        with self._expecting((AlreadyExistsError, taken)):
            given = self.db.checkpoints.fork(saved.id, None, name)
        if not taken:
            assert given.parent_id == saved.id
            self.model.runs[name] = [Saved(given.id, saved.step, saved.id, saved.tensors, saved.note)]

    @precondition(lambda self: not self.doomed and self.model.runs)
    @rule(data=st.data())
    def delete_run(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(sorted(self.model.runs)))
        assert self.db.checkpoints.delete_run(run) == len(self.model.runs[run])
        self.model.forget_checkpoints(list(self.model.runs[run]))
        del self.model.runs[run]

    @precondition(has_checkpoints)
    @rule(data=st.data())
    def share_a_checkpoint_with_a_dataset(self, data: st.DataObject) -> None:
        _, saved = self._pick_saved(data)
        tensor = self.db.checkpoints.load(saved.id)["model"]["v"]
        before, self.preset = self.preset, "lossless"
        self.db.set_compression_preset("lossless")
        for name, dataset in self.model.datasets.items():
            if dataset.preset is None:
                key = self.db.insert(name, tensor)
                dataset.put(Row(key, bits_of(tensor), None))
                break
        self.db.set_compression_preset(before)
        self.preset = before

    # Weights and deltas.

    @precondition(lambda self: not self.doomed)
    @rule(n=NUMBERS, dtype=st.sampled_from(DTYPES), shape=st.sampled_from(SHAPES), several=st.booleans())
    def store(self, n: int, dtype: torch.dtype, shape: tuple[int, ...], several: bool) -> None:
        given = [tensor_of(n + i, dtype, shape) for i in range(3 if several else 1)]
        hashes = self.db.weights.store_batch(given) if several else [self.db.weights.store(given[0], name=f"w{n}")]
        for tensor, name in zip(given, hashes, strict=True):
            info, read = self.db.weights.get_metadata(name), self.db.weights.load(name)
            if self.preset not in LOSSY:
                assert bits_of(read) == bits_of(tensor)
            elif name not in self.model.weights:
                assert_within(read, tensor, info.encoding.quantization, info.error.max_abs)
            assert self.model.weights.setdefault(name, bits_of(read)) == bits_of(read)

    @precondition(has_weights)
    @rule(data=st.data(), n=NUMBERS)
    def store_delta(self, data: st.DataObject, n: int) -> None:
        base = data.draw(st.sampled_from(sorted(self.model.weights)))
        tensor = self.db.weights.load(base).clone()
        if tensor.numel():
            tensor.reshape(-1)[: 1 + n % 3] = 1
        name = self.db.weights.store_delta(tensor, base)
        assert bits_of(self.db.weights.load_delta(name)) == bits_of(tensor)
        self.model.deltas[name, base] = bits_of(tensor)

    @precondition(has_weights)
    @rule(data=st.data())
    def delete_weight(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.weights)))
        self.db.weights.delete(name)
        del self.model.weights[name]
        assert not self.db.weights.exists(name)
        with self._expecting((WeightNotFoundError, all(hash_ != name for hash_, _ in self.model.deltas))):
            self.db.weights.load(name)  # of a delta, if there is one of this content

    @precondition(lambda self: not self.doomed and self.model.deltas)
    @rule(data=st.data(), of_one_base=st.booleans())
    def delete_delta(self, data: st.DataObject, of_one_base: bool) -> None:
        name, base = data.draw(st.sampled_from(sorted(self.model.deltas)))
        self.db.weights.delete_delta(name, base_hash=base if of_one_base else None)
        for key in [key for key in self.model.deltas if key[0] == name and (key[1] == base or not of_one_base)]:
            del self.model.deltas[key]

    # What holds after every step.

    @invariant()
    def no_run_grows_for_ever(self) -> None:
        if self.doomed:
            return
        for run, saved in self.model.runs.items():
            if len(saved) > MOST:
                self.db.checkpoints.prune(run, keep_last=2)
                self.model.forget_checkpoints([each for each in saved[:-2] if not each.tags])

    def _same_as_the_model(self, db: TensorStorage) -> None:
        super()._same_as_the_model(db)
        assert sorted(db.checkpoints.runs()) == sorted(self.model.runs)
        for run, saved in self.model.runs.items():
            expected = [(each.id, each.step, each.parent, tuple(sorted(each.tags))) for each in saved]
            assert [(c.id, c.step, c.parent_id, c.tags) for c in db.checkpoints.list(run)] == expected
        assert sorted(info.hash for info in db.weights.list_weights()) == sorted(self.model.weights)
        assert sorted((info.hash, info.base_hash) for info in db.weights.list_deltas()) == sorted(self.model.deltas)
        self._look_at_one(db)

    def _look_at_one(self, db: TensorStorage) -> None:
        """Load one checkpoint, one weight and one delta, in turn: all of them at every step would take too long."""
        self.looked += 1
        everything = [(run, each) for run, saved in self.model.runs.items() for each in saved]
        if everything:
            run, saved = everything[self.looked % len(everything)]
            self._loads(db, run, saved)
        if self.model.weights:
            name = sorted(self.model.weights)[self.looked % len(self.model.weights)]
            assert bits_of(db.weights.load(name)) == self.model.weights[name]
        if self.model.deltas:
            name, base = sorted(self.model.deltas)[self.looked % len(self.model.deltas)]
            assert bits_of(db.weights.load_delta(name)) == self.model.deltas[name, base]

    def _loads(self, db: TensorStorage, run: str, saved: Saved) -> None:
        trees = [db.checkpoints.load(saved.id), *(db.checkpoints.load(run, which=tag) for tag in saved.tags)]
        for tree in trees:
            assert {name: bits_of(tensor) for name, tensor in tree["model"].items()} == saved.tensors
            assert tree["model"]["tied"] is tree["model"]["v"]
            assert tree["state"]["note"] == saved.note

    def _delete_everything(self) -> None:
        for run, saved in self.model.runs.items():
            for each in saved:
                self._loads(self.db, run, each)
        super()._delete_everything()
        for name in self.model.weights:
            assert bits_of(self.db.weights.load(name)) == self.model.weights[name]
            self.db.weights.delete(name)
        for name in {name for name, _ in self.model.deltas}:
            self.db.weights.delete_delta(name)
        for run in self.db.checkpoints.runs():
            self.db.checkpoints.delete_run(run)
