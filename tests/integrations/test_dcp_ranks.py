"""Sharded checkpoints, saved and loaded by real process groups: see ranks.py for what each rank does."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

import tensordb
from tensordb import TensorStorage
from tensordb.integrations.dcp import TensorDBReader, TensorDBWriter

DEADLINE = 240.0
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def run_ranks(folder: Path, **worlds: int) -> None:
    """Run tasks one after the other, each on so many ranks, which are processes; all have to say that they are done."""
    program = Path(__file__).with_name("ranks.py")
    paths = [str(Path(tensordb.__file__).parents[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(program), str(folder), *(f"{task}-{world}" for task, world in worlds.items())]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        assert process.wait(DEADLINE) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # ranks that wait for each other, too
        process.wait()
    for task, world in worlds.items():
        for rank in range(world):
            log = folder.with_name(f"{task}-{world}-{rank}.log").read_text()
            assert "done" in log.splitlines(), log


def stored_objects(db: TensorStorage) -> int:
    return db.sql("SELECT count(*) AS n FROM tensordb.objects WHERE raw_nbytes != 1").to_pylist()[0]["n"]


def test_what_two_ranks_saved_is_whole_and_loads_bit_equal_on_one_and_on_three_or_is_not_there(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    run_ranks(folder, save=2, load=3)
    with TensorStorage(folder) as db:
        expected = db.checkpoints.load("expected")["state"]["tensors"]
        assert sorted(db.checkpoints.runs()) == ["async", "expected", "gathered", "run"]
        assert [each.step for each in db.checkpoints.list("run")] == [2, 3, 4]  # and not the one whose rank was killed
        assert [each.step for each in db.checkpoints.list("gathered")] == [5]
        check_whole(db, expected)
        check_one_rank(folder, expected)
        check_ordinary(db)
        report = db.maintenance.gc()
        assert report.segments_removed >= 1  # what the ranks of the killed save wrote
        weight = torch.rand(129, 37)
        dcp.save({"model": {"first.weight": weight}}, storage_writer=TensorDBWriter(db, "run", step=10))
        assert torch.equal(db.checkpoints.load("run")["model"]["first.weight"], weight)
        assert db.verify().ok


def check_whole(db: TensorStorage, expected: dict[str, torch.Tensor]) -> None:
    """Each of the checkpoints is the state as it was, though training went on; loaded without ranks, put together."""
    for run, step in (("run", 2), ("run", 3), ("async", 2)):
        state = db.checkpoints.load(run, step=step)
        assert state["progress"] == {"step": 2, "betas": (0.9, 0.999), "seen": [1, 2]}
        assert all(torch.equal(each, expected[f"model.{name}"]) for name, each in state["model"].items())
        moments = state["optim"]["state"]["first.weight"]
        assert torch.equal(moments["exp_avg"], expected["optim.first.weight.exp_avg"])
    gathered = db.checkpoints.load("gathered")["model"]
    later = db.checkpoints.load("run", step=4)["model"]
    assert all(torch.equal(gathered[name], later[name]) for name in gathered)
    lazy = db.checkpoints.load("run", step=2, keys="model.first.weight", lazy=True)
    assert list(lazy) == ["model"]
    assert torch.equal(lazy["model"]["first.weight"], expected["model.first.weight"])
    differences = db.checkpoints.diff(("run", 2), ("run", 4), keys="model").counts  # shard by shard
    assert set(differences) == {"changed"}


def check_one_rank(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    names = [name.removeprefix("model.") for name in expected if name.startswith("model.")]
    state = {"model": {name: torch.empty_like(expected[f"model.{name}"]) for name in names}}
    dcp.load(state, storage_reader=TensorDBReader(folder, "run", step=2))
    assert all(torch.equal(state["model"][name], expected[f"model.{name}"]) for name in names)


def check_ordinary(db: TensorStorage) -> None:
    tensors = db.sql("SELECT run, step, name, deltas, content_id FROM history.tensors").to_pylist()
    first, equal, later = (
        {each["name"]: each for each in tensors if (each["run"], each["step"]) == ("run", step)} for step in (2, 3, 4)
    )
    assert {"model.first.weight.shard(0,0)", "model.first.weight.shard(65,0)"} <= first.keys() == later.keys()
    assert {name: each["content_id"] for name, each in first.items()} == {
        name: each["content_id"] for name, each in equal.items()
    }
    saved = db.checkpoints.list("run")
    documents = db.sql(
        "SELECT o.stored_nbytes AS n FROM tensordb.checkpoints c JOIN tensordb.objects o "
        "ON o.object_id = c.document_id ORDER BY c.number"
    ).to_pylist()
    assert saved[1].added_nbytes <= max([each["n"] for each in documents], default=8192)  # no payload of a tensor
    assert saved[0].metrics == {"loss": 0.5}
    db.checkpoints.tag("run", "good", step=2)
    assert [each.step for each in db.checkpoints.prune("run", keep_last=1).removed] == [3]
    assert db.checkpoints.get("run", which="good").step == 2
    assert db.checkpoints.delete("async").run == "async"
    assert db.verify().ok
