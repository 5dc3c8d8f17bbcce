"""Files of torch.save come into a database in their roles, and none of them runs code."""

import argparse
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tensordb import InvalidInputError, TensorStorage
from tensordb.integrations.torch_files import import_torch

MODEL = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.tensor([float("nan"), -0.0])}


@pytest.fixture
def db() -> Iterator[TensorStorage]:
    with TensorStorage(None) as opened:
        yield opened


def imported(db: TensorStorage, folder: Path, content: Any, **settings: Any) -> dict[str, Any]:
    torch.save(content, folder / "file.pt")
    import_torch(db, folder / "file.pt", "run", **settings)
    loaded: dict[str, Any] = db.checkpoints.load("run")
    return loaded


def equal(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[key].nan_to_num(), other[key].nan_to_num()) for key in one
    )


def test_a_state_dict_is_the_model(db: TensorStorage, tmp_path: Path) -> None:
    module = nn.BatchNorm1d(3)
    loaded = imported(db, tmp_path, module.state_dict())
    assert loaded.keys() == {"model"}
    assert type(loaded["model"]) is OrderedDict
    other = nn.BatchNorm1d(3)
    db.checkpoints.load("run", into=other)
    assert equal(other.state_dict(), module.state_dict())


def test_a_training_is_put_in_its_roles_and_goes_on(db: TensorStorage, tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    module(torch.ones(3)).sum().backward()
    optimizer.step()
    content = {
        "model_state_dict": module.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "epoch": 4,
        "step": 100,
        "best": [0.1, 0.2],
    }
    loaded = imported(db, tmp_path, content)
    assert loaded.keys() == {"model", "optimizer", "scheduler", "state"}
    assert loaded["state"] == {"epoch": 4, "step": 100, "best": [0.1, 0.2]}
    found = db.checkpoints.get("run")
    assert (found.step, found.epoch) == (100, 4)
    other = nn.Linear(3, 2)
    others = torch.optim.Adam(other.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(others, 2)
    db.checkpoints.resume("run", other, others, scheduler=schedule, state={})
    assert torch.equal(others.state[other.weight]["exp_avg"], optimizer.state[module.weight]["exp_avg"])


def test_a_file_of_lightning_is_put_in_its_roles(db: TensorStorage, tmp_path: Path) -> None:
    content = {
        "epoch": 1,
        "global_step": 20,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": MODEL,
        "optimizer_states": [{"state": {}, "param_groups": []}],
        "lr_schedulers": [],
        "callbacks": {"a": {"best": torch.tensor(1.0)}},
    }
    loaded = imported(db, tmp_path, content)
    assert loaded.keys() == {"model", "optimizer", "state"}
    assert loaded["state"].keys() == {"epoch", "global_step", "pytorch-lightning_version", "lr_schedulers", "callbacks"}
    assert equal(loaded["model"], MODEL)
    assert db.checkpoints.get("run").step == 20


@pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3), 5], {"a": 1}, {}, {"model": 3, "x": torch.ones(1)}])
def test_anything_else_is_the_state(db: TensorStorage, tmp_path: Path, content: Any) -> None:
    loaded = imported(db, tmp_path, content)
    assert loaded.keys() == {"state"}
    assert str(loaded["state"]) == str(content)


def test_what_is_given_goes_before_what_the_file_says(db: TensorStorage, tmp_path: Path) -> None:
    imported(db, tmp_path, {"model": MODEL, "epoch": 4, "step": -1}, step=7, epoch=0.5, metadata={"a": 1})
    found = db.checkpoints.get("run")
    assert (found.step, found.epoch, found.metadata) == (7, 0.5, {"a": 1})


@pytest.mark.parametrize("step", [-1, True, "7", 1 << 80, None, 1.5])
def test_a_step_that_is_none_stays_in_the_state_alone(db: TensorStorage, tmp_path: Path, step: Any) -> None:
    loaded = imported(db, tmp_path, {"model": MODEL, "step": step})
    assert loaded["state"] == {"step": step}
    assert db.checkpoints.get("run").step is None


def test_files_of_the_old_format_and_of_tied_tensors_are_read(db: TensorStorage, tmp_path: Path) -> None:
    weight = torch.randn(3, 3)
    torch.save({"a": weight, "b": weight}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    found = import_torch(db, tmp_path / "old.pt", "run")
    loaded = db.checkpoints.load("run")["model"]
    assert found.tensors == 1
    assert torch.equal(loaded["a"], weight)
    assert loaded["a"] is loaded["b"]


class Harm:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize(
    "content", [{"model": MODEL, "x": Harm()}, {"args": argparse.Namespace(lr=1)}, nn.Linear(2, 2)]
)
def test_a_file_that_needs_code_is_refused_and_runs_none(
    db: TensorStorage, tmp_path: Path, content: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, "file.pt")
    with pytest.raises(InvalidInputError, match=r"file\.pt is not read, since .* it needs \w+\.\w+"):
        import_torch(db, "file.pt", "run")
    with open("plain.pkl", "wb") as file:
        pickle.dump(content, file)
    with pytest.raises(InvalidInputError, match=r"plain\.pkl"):
        import_torch(db, "plain.pkl", "run")
    assert not (tmp_path / "harmed").exists()
    assert db.checkpoints.runs() == []


def test_damaged_files_are_refused_by_their_name(db: TensorStorage, tmp_path: Path) -> None:
    path = tmp_path / "bad.pt"
    torch.save({"model": MODEL}, path)
    whole = path.read_bytes()
    for data in [b"", b"\x80", b"text" * 100, whole[:100], whole[:-30], whole[: len(whole) // 2]]:
        path.write_bytes(data)
        with pytest.raises(InvalidInputError, match=r"bad\.pt"):
            import_torch(db, path, "run")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bad/data.pkl", b"\x80\x02}q\x00.")
    with pytest.raises(InvalidInputError, match=r"bad\.pt"):
        import_torch(db, path, "run")
    for missing in (tmp_path, tmp_path / "missing.pt"):
        with pytest.raises(InvalidInputError, match="cannot be read"):
            import_torch(db, missing, "run")


def test_a_pipe_is_refused_and_not_waited_for(db: TensorStorage, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(InvalidInputError, match=r"pipe\.pt cannot be read: it is no regular file"):
        import_torch(db, tmp_path / "pipe.pt", "run")


def test_text_that_is_said_to_be_longer_than_its_file_allocates_nothing(db: TensorStorage, tmp_path: Path) -> None:
    torch.save(MODEL, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "old.pt").read_bytes()
    at = whole.index(b"layer.weight") - 4
    (tmp_path / "bad.pt").write_bytes(whole[:at] + struct.pack("<I", 0xF0000000) + whole[at + 4 :])
    tracemalloc.start()
    with pytest.raises(InvalidInputError, match=r"bad\.pt"):
        import_torch(db, tmp_path / "bad.pt", "run")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20
    assert db.checkpoints.runs() == []


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
def test_what_cannot_be_stored_is_refused_by_its_path(db: TensorStorage, tmp_path: Path) -> None:
    quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    torch.save({"model": MODEL, "more": {"q": quantized}}, tmp_path / "file.pt")
    with pytest.raises(InvalidInputError, match=r"state\.more\.q"):
        import_torch(db, tmp_path / "file.pt", "run")
