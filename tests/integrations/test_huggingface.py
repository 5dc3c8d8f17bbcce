"""A trainer of transformers keeps its checkpoints in a database, and goes on from them as if nothing had happened."""

import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"

from tensordb import (
    AlreadyExistsError,
    CheckpointNotFoundError,
    InvalidInputError,
    MissingDependencyError,
    TensorStorage,
)
from tensordb.integrations.safetensors import export_safetensors, import_safetensors

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of transformers' own imports
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed

    from tensordb.integrations.huggingface import TensorDBCallback, resume_training, write_trainer_folder

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*pin_memory.*:UserWarning"),
]

CONFIG = {"vocab_size": 32, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 0}


class Tokens(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        values = torch.arange(8).add(index) % 32
        return {"input_ids": values, "labels": values}


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        control.should_training_stop = state.global_step >= self._step


def trainer(folder: Path, *callbacks: Any, **settings: Any) -> Any:
    set_seed(1)
    settings = {"save_strategy": "no", "max_steps": 6} | settings
    args = TrainingArguments(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=4,
        learning_rate=0.01,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=3,
        **settings,
    )
    model = GPT2LMHeadModel(GPT2Config(**CONFIG, eos_token_id=0))
    return Trainer(model=model, args=args, train_dataset=Tokens(), eval_dataset=Tokens(), callbacks=list(callbacks))


@pytest.fixture
def db(tmp_path: Path) -> Iterator[TensorStorage]:
    with TensorStorage(tmp_path / "data.tdb") as opened:
        yield opened


def equal(one: Any, other: Any) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)


def equal_moments(one: Any, other: Any) -> bool:
    ours, theirs = one.optimizer.state_dict()["state"], other.optimizer.state_dict()["state"]
    return all(torch.equal(ours[n][key], value) for n, values in theirs.items() for key, value in values.items())


@pytest.mark.parametrize("async_", [False, True])
def test_a_training_that_is_resumed_ends_bit_equal(db: TensorStorage, tmp_path: Path, async_: bool) -> None:
    whole = trainer(tmp_path)
    whole.train()
    trainer(tmp_path, TensorDBCallback(db, "run", save_steps=3, async_=async_), StopAt(3)).train()
    assert [each.step for each in db.checkpoints.list("run")] == [3]
    resumed = trainer(tmp_path, TensorDBCallback(db, "run", save_steps=3, async_=async_))
    resume_training(resumed, db, "run")
    assert equal(resumed.model, whole.model)
    assert equal_moments(resumed, whole)
    assert resumed.lr_scheduler.state_dict() == whole.lr_scheduler.state_dict()
    assert [each.step for each in db.checkpoints.list("run")] == [3, 6]
    assert list((tmp_path / "out").iterdir()) == []


def test_what_the_trainer_saves_and_evaluates_is_saved_once_with_its_metrics(db: TensorStorage, tmp_path: Path) -> None:
    callback = TensorDBCallback(db, "run", preset={"model": "lossless"}, metadata={"note": "a"})
    fitted = trainer(
        tmp_path, callback, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=3, max_steps=6
    )
    fitted.train()
    found = db.checkpoints.list("run")
    assert [each.step for each in found] == [2, 3, 4, 6]
    assert ["eval_loss" in each.metrics for each in found] == [False, True, False, True]
    assert all("loss" in each.metrics and each.metadata == {"note": "a"} for each in found)
    assert found[0].epoch == 0.5
    assert db.checkpoints.load("run", keys="state")["state"]["config"]["n_embd"] == 16
    fitted.evaluate()
    assert len(db.checkpoints.list("run")) == 4


def test_the_trainers_own_folder_and_ours_lead_to_the_same_end(db: TensorStorage, tmp_path: Path) -> None:
    trainer(tmp_path, TensorDBCallback(db, "run"), StopAt(3), save_strategy="steps", save_steps=3).train()
    ours = write_trainer_folder(db, "run", tmp_path / "ours", step=3)
    theirs = tmp_path / "out" / "checkpoint-3"
    assert {path.name for path in theirs.iterdir()} - {path.name for path in ours.iterdir()} <= {
        "training_args.bin",
        "generation_config.json",
    }
    one, other = trainer(tmp_path), trainer(tmp_path)
    one.train(resume_from_checkpoint=str(ours))
    other.train(resume_from_checkpoint=str(theirs))
    assert equal(one.model, other.model)
    with pytest.raises(AlreadyExistsError):
        write_trainer_folder(db, "run", ours)


def test_transformers_loads_the_folder_as_a_model(db: TensorStorage, tmp_path: Path) -> None:
    fitted = trainer(tmp_path, TensorDBCallback(db, "run", save_steps=1), max_steps=1)
    fitted.train()
    folder = write_trainer_folder(db, "run", tmp_path / "folder")
    loaded, report = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert equal(loaded, fitted.model)


def test_a_folder_that_transformers_wrote_comes_out_byte_for_byte(db: TensorStorage, tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(**CONFIG, eos_token_id=0)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "in", max_shard_size="4KB")
    import_safetensors(db, tmp_path / "in", "run")
    export_safetensors(db, "run", tmp_path / "out")
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    assert "model.safetensors.index.json" in written
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path / "out")
    assert equal(loaded, model)


def test_transformers_loads_a_model_exported_in_shards(db: TensorStorage, tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(**CONFIG, eos_token_id=0))
    db.checkpoints.save("run", model)
    assert len(export_safetensors(db, "run", tmp_path / "out", max_shard_size="8KB")) > 2
    model.config.save_pretrained(tmp_path / "out")
    assert equal(GPT2LMHeadModel.from_pretrained(tmp_path / "out"), model)


def test_only_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    trainer(tmp_path, TensorDBCallback(tmp_path / "data.tdb", "run", save_steps=1, keep_last=2), max_steps=5).train()
    with TensorStorage(tmp_path / "data.tdb", read_only=True) as db:
        assert [each.step for each in db.checkpoints.list("run")] == [4, 5]


def test_a_run_without_checkpoints_is_begun(tmp_path: Path) -> None:
    fitted = trainer(tmp_path, max_steps=1)
    resume_training(fitted, tmp_path / "data.tdb", "run")
    assert fitted.state.global_step == 1
    with pytest.raises(CheckpointNotFoundError):
        resume_training(fitted, tmp_path / "data.tdb", "run", step=5)


def test_checkpoints_of_others_and_settings_that_are_none_are_refused(db: TensorStorage, tmp_path: Path) -> None:
    db.checkpoints.save("run", torch.nn.Linear(2, 2))
    with pytest.raises(InvalidInputError, match="not saved by a TensorDBCallback"):
        write_trainer_folder(db, "run", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    with pytest.raises(InvalidInputError, match="keep_last"):
        TensorDBCallback(db, "run", keep_last=0)
    with pytest.raises(InvalidInputError, match="save_steps"):
        TensorDBCallback(db, "run", save_steps=1.5)  # type: ignore[arg-type]


def test_a_model_that_is_split_over_processes_is_refused(db: TensorStorage) -> None:
    args = SimpleNamespace(deepspeed=None, fsdp="full_shard")
    with pytest.raises(InvalidInputError, match="FSDP"):
        TensorDBCallback(db, "run").on_train_begin(args, SimpleNamespace(global_step=0), None)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "tensordb.integrations.huggingface")
    with pytest.raises(MissingDependencyError, match=r"tensordb\[huggingface\]"):
        importlib.import_module("tensordb.integrations.huggingface")
