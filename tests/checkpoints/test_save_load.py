"""What was saved comes back: into dicts, into modules and optimizers, in part, later."""

from __future__ import annotations

import copy
import datetime as dt
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tensordb import CompressionConfig, Rule, TensorStorage
from tensordb.errors import (
    CheckpointNotFoundError,
    InvalidInputError,
    ReadOnlyError,
    UnknownPresetError,
)

from .training import Training, assert_same, tensors_of


def test_a_training_comes_back_bit_for_bit(db: TensorStorage) -> None:
    training = Training()
    for _ in range(3):
        training.step()
    saved = db.checkpoints.save("run", training.model, **training.parts(), step=3, epoch=1, metrics={"loss": 0.5})
    expected = training.state()
    training.step()
    tree = db.checkpoints.load("run")
    assert list(tree) == ["model", "optimizer", "scheduler", "rng"]
    assert_same(tensors_of(tree), expected)
    assert tree["scheduler"]["last_epoch"] == 3
    assert (saved.run, saved.step, saved.epoch, saved.metrics, saved.parent_id) == ("run", 3, 1, {"loss": 0.5}, None)
    assert abs(dt.datetime.now(dt.UTC) - saved.created_at) < dt.timedelta(minutes=5)


def test_a_training_resumed_ends_like_one_that_was_never_stopped(tmp_path: Path) -> None:
    def batch() -> float:
        return random.random() + float(np.random.rand())

    whole, drawn = Training(), []
    random.seed(3)
    np.random.seed(3)
    with TensorStorage(tmp_path) as db:
        for step in range(6):
            whole.step()
            drawn.append(batch())
            if step == 2:
                db.checkpoints.save("run", whole.model, **whole.parts(), step=step)
    expected = whole.state()

    other = Training(seed=99)
    random.seed(99)
    with TensorStorage(tmp_path) as db:
        found = db.checkpoints.resume("run", other.model, other.optimizer, scheduler=other.scheduler)
    assert found is not None
    assert found.step == 2
    again = [(other.step(), batch())[1] for _ in range(found.step + 1, 6)]
    assert again == drawn[3:]
    assert_same(other.state(), expected)


def test_a_run_without_checkpoints_resumes_as_nothing(db: TensorStorage) -> None:
    training = Training()
    before = training.state()
    assert db.checkpoints.resume("new", training.model, training.optimizer) is None
    assert_same(training.state(), before)
    with pytest.raises(CheckpointNotFoundError, match="'new'"):
        db.checkpoints.resume("new", training.model, step=3)


def test_what_is_saved_never_changes_when_training_goes_on(db: TensorStorage) -> None:
    weight = torch.zeros(1000)
    expected = []
    for step in range(5):
        weight += 1
        expected.append(weight.clone())
        db.checkpoints.save("run", {"weight": weight}, step=step)
    for step, tensor in enumerate(expected):
        loaded = db.checkpoints.load("run", step=step)["model"]["weight"]
        assert torch.equal(loaded, tensor)
        loaded.fill_(-1)
    assert torch.equal(db.checkpoints.load("run", step=0)["model"]["weight"], expected[0])


def test_buffers_are_saved_and_tied_weights_stay_tied(db: TensorStorage) -> None:
    model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 50, bias=False), nn.BatchNorm1d(50))
    model[1].weight = model[0].weight
    model(torch.randint(50, (9,)))
    saved = db.checkpoints.save("run", model, rng=False)
    assert saved.tensors == 7 - 1
    loaded = db.checkpoints.load("run")["model"]
    assert loaded["0.weight"] is loaded["1.weight"]
    assert loaded["2.num_batches_tracked"].item() == 1
    assert torch.equal(loaded["2.running_var"], model[2].running_var)


def test_any_nested_state_comes_back_as_it_was(db: TensorStorage) -> None:
    state = {
        "list": [1, 2.5, None, "text", b"bytes", (1, (2,))],
        3: {"int key": torch.arange(4)},
        "when": dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "nan": float("inf"),
        "sparse": torch.eye(5).to_sparse(),
    }
    db.checkpoints.save("run", state=state, rng=False)
    loaded = db.checkpoints.load("run")["state"]
    assert torch.equal(loaded.pop("sparse").to_dense(), state.pop("sparse").to_dense())  # type: ignore[attr-defined]
    assert torch.equal(loaded[3].pop("int key"), state[3].pop("int key"))  # type: ignore[index,call-overload]
    assert loaded == state
    assert [type(key) for key in loaded] == [type(key) for key in state]


@pytest.mark.parametrize(
    ("state", "path"),
    [
        ({"layer": {"weight": torch.empty(2, device="meta")}}, "layer.weight"),
        ({"hook": print}, "hook"),
        ({"deep": [1, {"model": nn.Linear(1, 1)}]}, "model"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_its_path(db: TensorStorage, state: Any, path: str) -> None:
    with pytest.raises(InvalidInputError, match=path):
        db.checkpoints.save("run", state=state)
    assert db.checkpoints.runs() == []


def test_a_sampler_and_a_generator_are_saved_and_restored_with_the_rest(db: TensorStorage) -> None:
    class Sampler:
        position = 0

        def state_dict(self) -> dict[str, int]:
            return {"position": self.position}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.position = state["position"]

    sampler, generator = Sampler(), torch.Generator().manual_seed(5)
    sampler.position = 17
    db.checkpoints.save("run", state={"sampler": sampler, "generator": generator, "note": "kept"}, step=0)
    expected = torch.rand(3, generator=generator)
    other, fresh = Sampler(), torch.Generator()
    db.checkpoints.resume("run", state={"sampler": other, "generator": fresh})
    assert other.position == 17
    assert torch.equal(torch.rand(3, generator=fresh), expected)
    with pytest.raises(InvalidInputError, match="'loader'"):
        db.checkpoints.resume("run", state={"loader": other})


def test_keys_pick_what_is_loaded(db: TensorStorage) -> None:
    training = Training()
    training.step()
    db.checkpoints.save("run", training.model, **training.parts())
    assert list(db.checkpoints.load("run", keys="model")) == ["model"]
    assert list(db.checkpoints.load("run", keys=["model.0.*"])["model"]) == ["0.weight", "0.bias"]
    assert list(db.checkpoints.load("run", keys=["model.3.bias", "optimizer.state.0"])["optimizer"]["state"]) == [0]
    with pytest.raises(InvalidInputError, match="keys"):
        db.checkpoints.load("run", keys=[3])  # type: ignore[list-item]


def test_a_lazy_state_reads_what_it_is_asked_for(db: TensorStorage) -> None:
    weight = torch.randn(300, 40)
    db.checkpoints.save("run", {"weight": weight, "bias": torch.ones(3)}, rng=False)
    lazy = db.checkpoints.load("run", lazy=True)["model"]
    db.checkpoints.delete_run("run")
    assert lazy["weight"].shape == (300, 40)
    assert lazy["weight"].dtype == torch.float32
    assert torch.equal(lazy["weight"][7:9, 3], weight[7:9, 3])
    assert torch.equal(lazy["weight"].load(), weight)
    assert "LazyTensor('model.weight', float32[300, 40])" in repr(lazy)


def test_a_checkpoint_that_does_not_fit_a_module_changes_nothing_and_names_what_is_wrong(db: TensorStorage) -> None:
    training = Training()
    db.checkpoints.save("run", training.model)
    other = nn.Sequential(nn.Linear(8, 24), nn.Linear(24, 3))
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(InvalidInputError, match=r"missing in the checkpoint: none.*|model\.1\.weight is"):
        db.checkpoints.load("run", into=other)
    assert_same(dict(other.state_dict()), before)

    class Longer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("0", nn.Linear(8, 24))
            self.added = nn.Parameter(torch.ones(2))

    longer = Longer()
    with pytest.raises(InvalidInputError, match=r"model\.added"):
        db.checkpoints.load("run", into=longer)
    report = db.checkpoints.load("run", into=longer, strict=False)
    assert report.missing == ("model.added",)
    assert "model.3.weight" in report.unexpected
    assert torch.equal(longer.get_submodule("0").weight, training.model[0].weight)


def test_an_optimizer_gets_its_own_dtypes_back(db: TensorStorage) -> None:
    weight = nn.Parameter(torch.randn(40).bfloat16())
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    optimizer.state[weight]["exp_avg"] = torch.randn(40)
    db.checkpoints.save("run", optimizer=optimizer)
    fresh = torch.optim.AdamW([nn.Parameter(torch.zeros(40).bfloat16())])
    db.checkpoints.load("run", into=fresh)
    loaded = fresh.state_dict()["state"][0]
    assert loaded["exp_avg"].dtype == torch.float32
    assert torch.equal(loaded["exp_avg"], optimizer.state[weight]["exp_avg"])


def test_presets_apply_by_role_and_by_name(db: TensorStorage) -> None:
    training = Training(width=512)
    training.step()
    mixed = CompressionConfig("auto", rules=[Rule(name="3.*", min_nbytes=4096, use="maximum")])
    db.checkpoints.save("run", training.model, **training.parts(), preset={"model": mixed, "optimizer": "int8_only"})
    found = db.sql("SELECT name, quantization FROM history.tensors").to_pylist()
    applied = {row["name"]: row["quantization"] for row in found}
    assert applied["model.0.weight"] == "none"
    assert applied["model.3.weight"] == "int8"
    assert applied["optimizer.state.0.exp_avg"] == "int8"
    assert applied["optimizer.state.0.step"] == "none"
    assert torch.equal(db.checkpoints.load("run")["model"]["0.weight"], training.model[0].weight)


def test_the_storage_decides_where_no_preset_is_given_but_random_states_stay_exact(tmp_path: Path) -> None:
    with TensorStorage(tmp_path, compression_preset="maximum") as db:
        db.checkpoints.save("run", {"weight": torch.randn(4000)})
        rows = db.sql("SELECT role, quantization FROM history.tensors WHERE nbytes > 4000").to_pylist()
        assert {row["quantization"] for row in rows if row["role"] == "model"} == {"int8"}
        assert {row["quantization"] for row in rows if row["role"] == "rng"} == {"none"}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"run": ""}, InvalidInputError),
        ({"run": 3}, InvalidInputError),
        ({"step": -1}, InvalidInputError),
        ({"step": True}, InvalidInputError),
        ({"step": 1.5}, InvalidInputError),
        ({"epoch": float("nan")}, InvalidInputError),
        ({"metrics": {"loss": "low"}}, InvalidInputError),
        ({"metrics": [1]}, InvalidInputError),
        ({"metadata": {"f": print}}, InvalidInputError),
        ({"preset": "small"}, UnknownPresetError),
        ({"preset": {"weights": "lossless"}}, InvalidInputError),
        ({"preset": 3}, InvalidInputError),
        ({"model": 3}, InvalidInputError),
        ({"model": None}, InvalidInputError),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    db: TensorStorage, arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        db.checkpoints.save(**{"run": "run", "model": nn.Linear(2, 2), **arguments})
    assert db.checkpoints.list() == []


def test_metrics_and_metadata_come_back_as_they_were_given(db: TensorStorage) -> None:
    metrics = {"loss": torch.tensor(0.5), "steps": 3, "worst": float("nan"), "rate": np.float32(0.25)}
    metadata = {"tags": ["a", "ü"], "nested": {"when": dt.datetime(2026, 1, 1)}, "nan": float("nan"), "none": None}
    found = db.checkpoints.save("run", nn.Linear(1, 1), step=np.int64(3), metrics=metrics, metadata=metadata)
    found = db.checkpoints.get(found)
    assert str(found.metrics) == str({"loss": 0.5, "steps": 3, "worst": float("nan"), "rate": 0.25})
    assert str(found.metadata) == str(metadata)
    assert found.step == 3


def test_reading_alone_refuses_to_save_and_loads(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    with TensorStorage(tmp_path) as db:
        db.checkpoints.save("run", model)
    with TensorStorage(tmp_path, read_only=True) as db:
        assert torch.equal(db.checkpoints.load("run")["model"]["weight"], model.weight)
        with pytest.raises(ReadOnlyError):
            db.checkpoints.save("run", model)


def test_a_checkpoint_that_is_not_there_is_an_error_that_says_what_is(db: TensorStorage) -> None:
    db.checkpoints.save("run", nn.Linear(1, 1), step=7)
    for arguments, said in (
        ({"run_or_id": "other"}, "'run'"),
        ({"run_or_id": "run", "step": 8}, "7"),
        ({"run_or_id": "run", "which": "stable"}, "tags: none"),
        ({"run_or_id": "cc0000000000000"}, "'run'"),
    ):
        with pytest.raises(CheckpointNotFoundError, match=said):
            db.checkpoints.load(**arguments)  # type: ignore[arg-type]
    for arguments in ({"step": "7"}, {"step": 7, "which": "best"}, {"metric": "loss"}, {"which": "best"}):
        with pytest.raises(InvalidInputError):
            db.checkpoints.load("run", **arguments)  # type: ignore[arg-type]


def test_the_newest_of_several_checkpoints_of_one_step_is_loaded(db: TensorStorage) -> None:
    for value in (1.0, 2.0):
        db.checkpoints.save("run", {"w": torch.tensor(value)}, step=5)
    assert db.checkpoints.load("run", step=5)["model"]["w"].item() == 2.0
    assert len(db.checkpoints.list("run")) == 2


@pytest.mark.parametrize("preset", ["none", "fast", "lossless", "archive"])
def test_every_lossless_preset_keeps_every_bit(db: TensorStorage, preset: str) -> None:
    state = {
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(float("nan")),
        "strided": torch.randn(40, 60).t()[::2],
        "half": torch.randn(5000).half(),
        "eighth": torch.randn(64).to(torch.float8_e4m3fn),
        "flags": torch.rand(300) > 0.5,
        "pairs": torch.randn(30, dtype=torch.complex64),
        "zeros": torch.zeros(70_000),
    }
    db.checkpoints.save("run", state, preset=preset, rng=False)
    db.checkpoints.save("run", state, preset=preset, rng=False)
    assert_same(db.checkpoints.load("run")["model"], state)


def test_states_of_generators_stay_on_the_cpu_wherever_tensors_go(db: TensorStorage) -> None:
    generator = torch.Generator().manual_seed(3)
    db.checkpoints.save("run", {"w": torch.ones(3)}, state={"generator": generator})
    tree = db.checkpoints.load("run", map_location="meta")
    assert tree["model"]["w"].is_meta
    assert not tree["rng"]["torch"].is_meta


def test_an_optimizer_or_a_state_that_does_not_fit_leaves_the_model_as_it_was(db: TensorStorage) -> None:
    training = Training()
    training.step()
    db.checkpoints.save("run", training.model, **training.parts(), state={"epoch": 3})
    other = Training(seed=4)
    before = {key: value.clone() for key, value in other.model.state_dict().items()}
    grouped = torch.optim.AdamW([{"params": [each]} for each in other.model.parameters()])
    for targets in (
        {"optimizer": grouped},
        {"optimizer": other.optimizer, "state": {"sampler": other.scheduler}},
        {"state": {"epoch": torch.Generator()}},
        {"state": {"epoch": 3}},
    ):
        with pytest.raises(InvalidInputError):
            db.checkpoints.load("run", into={"model": other.model, **targets})
        assert_same(dict(other.model.state_dict()), before)


@pytest.mark.parametrize(
    ("bias", "named"),
    [
        ("text", "a str"),
        (None, "a NoneType"),
        (np.zeros(3, np.float32), "a ndarray"),
        (torch.zeros(3).to_sparse(), "sparse_coo"),
        (torch.zeros(3, dtype=torch.complex64), "complex64"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_a_module_cannot_take_is_refused_before_anything_is_loaded(
    db: TensorStorage, bias: object, named: str
) -> None:
    module = nn.Linear(3, 3)
    before = copy.deepcopy(module.state_dict())
    db.checkpoints.save("run", {"weight": torch.zeros(3, 3), "bias": bias}, rng=False)
    for strict in (True, False):
        with pytest.raises(InvalidInputError, match=rf"nothing was loaded: model\.bias is .*{named}"):
            db.checkpoints.load("run", into=module, strict=strict)
        assert_same(dict(module.state_dict()), dict(before))


def test_fractions_and_odd_names_are_not_dropped_without_a_word(db: TensorStorage) -> None:
    counting = nn.BatchNorm1d(2)
    state = {**counting.state_dict(), "num_batches_tracked": torch.tensor(2.5)}
    db.checkpoints.save("run", state, rng=False)
    with pytest.raises(InvalidInputError, match=r"float32 in the checkpoint and torch\.int64"):
        db.checkpoints.load("run", into=counting)
    assert counting.num_batches_tracked == 0
    db.checkpoints.save("run", {**counting.state_dict(), 5: torch.ones(2)}, rng=False)
    with pytest.raises(InvalidInputError, match="the key 5"):
        db.checkpoints.load("run", into=counting, strict=False)
    wide = counting.double()
    db.checkpoints.save("run", nn.BatchNorm1d(2), rng=False)
    db.checkpoints.load("run", into=wide)  # another precision is another matter
    assert wide.weight.dtype == torch.float64


def test_whatever_a_target_raises_names_it(db: TensorStorage) -> None:
    class Moody(nn.Module):
        def get_extra_state(self) -> object:
            return 1

        def set_extra_state(self, state: object) -> None:
            raise AttributeError("not today")

    db.checkpoints.save("run", Moody(), state={"sampler": Moody()}, rng=False)
    for into in (Moody(), {"state": {"sampler": Moody()}}):
        with pytest.raises(InvalidInputError, match=r"does not take the checkpoint's state.*not today"):
            db.checkpoints.load("run", into=into)


def test_a_module_without_memory_is_refused(db: TensorStorage) -> None:
    db.checkpoints.save("run", nn.Linear(2, 2))
    with pytest.raises(InvalidInputError, match="to_empty"):
        db.checkpoints.load("run", into=nn.Linear(2, 2, device="meta"))


def test_keys_that_name_nothing_are_an_error_that_says_so(db: TensorStorage) -> None:
    model = nn.Linear(2, 2)
    db.checkpoints.save("run", model)
    for into in (None, model):
        with pytest.raises(InvalidInputError, match="'modle'"):
            db.checkpoints.load("run", into=into, keys="modle")


def test_the_state_of_another_kind_of_optimizer_is_refused(db: TensorStorage) -> None:
    training = Training()
    training.step()
    db.checkpoints.save("run", training.model, **training.parts())
    other = torch.optim.SGD(training.model.parameters(), lr=0.5, momentum=0.9)
    with pytest.raises(InvalidInputError, match=r"SGD .*another kind"):
        db.checkpoints.resume("run", training.model, other)
    assert other.param_groups[0]["lr"] == 0.5


def test_parts_in_each_others_places_are_refused_when_they_are_saved(db: TensorStorage) -> None:
    training = Training()
    with pytest.raises(InvalidInputError, match="optimizer="):
        db.checkpoints.save("run", training.optimizer)
    with pytest.raises(InvalidInputError, match="scheduler="):
        db.checkpoints.save("run", training.model, optimizer=training.scheduler)
    assert db.checkpoints.runs() == []
