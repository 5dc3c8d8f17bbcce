"""What the ranks of process groups do for the tests: ``python ranks.py FOLDER TASK-WORLD...``.

One group comes after the other. Each rank is a process of its own, forked before anything is done, so that what they
all need is imported once.
"""

import multiprocessing
import os
import signal
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from tensordb import InvalidInputError, TensorDBError, TensorStorage
from tensordb.checkpoints.gathering import on_first_rank
from tensordb.integrations.dcp import TensorDBReader, TensorDBWriter


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(37, 129)
        self.second = torch.nn.Linear(129, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu())


def trained(seed: int, steps: int = 2) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Return a sharded model and its optimizer after some steps."""
    torch.manual_seed(seed)
    net = Net()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in (net.first, net.second, net):
        fully_shard(part, mesh=mesh)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    for _ in range(steps):
        train(net, optimizer)
    return net, optimizer


def train(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    net(torch.randn(8, 37)).square().sum().backward()
    optimizer.step()


def state_of(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    model, optim = get_state_dict(net, optimizer)
    return {"model": model, "optim": optim, "progress": {"step": 2, "betas": (0.9, 0.999), "seen": [1, 2]}}


def whole(state: dict) -> dict[str, torch.Tensor]:
    """Return all tensors of a state by name, gathered."""
    tensors = {f"model.{name}": each for name, each in state["model"].items()}
    for name, entries in state["optim"]["state"].items():
        tensors |= {f"optim.{name}.{key}": each for key, each in entries.items()}
    return {name: each.full_tensor() if isinstance(each, DTensor) else each.clone() for name, each in tensors.items()}


def save(folder: Path) -> None:
    """Save in every way, and be killed in the end."""
    net, optimizer = trained(seed=1)
    state = state_of(net, optimizer)
    writer = TensorDBWriter(folder, "run", step=2, metrics={"loss": 0.5})
    dcp.save(state, storage_writer=writer)
    assert (writer.checkpoint is not None) == (dist.get_rank() == 0)
    expected = whole(state)
    dcp.save(state, storage_writer=writer, checkpoint_id="3")  # equal shards
    group = dist.new_group()  # that of the training is in use meanwhile
    future = dcp.async_save(state, storage_writer=TensorDBWriter(folder, "async", step=2), process_group=group)
    train(net, optimizer)  # goes on while it is written
    future.result()
    dcp.save(state_of(net, optimizer), storage_writer=writer, checkpoint_id="4")  # differences
    gather(folder, net, optimizer, expected)
    refuse(folder, net)
    die(folder, net)


def gather(folder: Path, net: torch.nn.Module, optimizer: torch.optim.Optimizer, expected: dict) -> None:
    """Save shared tensors whole."""
    with TensorStorage(folder) as db:
        saved = db.checkpoints.save("gathered", net, optimizer=optimizer, step=5, rng=False)
        with pytest.raises(InvalidInputError, match="async_save"):
            db.checkpoints.save("refused", net, async_=True)
        mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("outer", "inner"))["inner"]
        with pytest.raises(InvalidInputError, match="1 of 2 ranks"):
            db.checkpoints.save("refused", {"w": distribute_tensor(torch.ones(4), mesh, [Shard(0)])})
        if dist.get_rank() == 0:  # nothing is shared: whoever calls it saves by itself
            db.checkpoints.save("expected", state={"tensors": expected}, rng=False)
    everywhere = [None, None]
    dist.all_gather_object(everywhere, saved)
    assert everywhere[0] == everywhere[1]
    with pytest.raises((OSError, TensorDBError), match="nothing left"):
        on_first_rank(fail)


def fail() -> None:
    raise OSError("nothing left")


def refuse(folder: Path, net: torch.nn.Module) -> None:
    """Give states that cannot be saved."""
    model = net.state_dict()
    for bad, message in (
        ({"callback": print}, "bad.callback is a builtin_function_or_method"),
        ({"pair": (1, model["first.weight"])}, "bad.pair holds a DTensor"),
    ):
        with pytest.raises(dcp.CheckpointException) as raised:
            dcp.save({"model": model, "bad": bad}, storage_writer=TensorDBWriter(folder, "refused"))
        assert message in str(raised.value)
    with pytest.raises(InvalidInputError, match="use_collectives"):
        dcp.save({"model": model}, storage_writer=TensorDBWriter(folder, "refused"), use_collectives=False)


class DyingWriter(TensorDBWriter):
    """Is killed on rank 1 once its shards are written."""

    def write_data(self, plan, planner):
        written = super().write_data(plan, planner)
        if dist.get_rank() == 1:
            print("done", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return written


def die(folder: Path, net: torch.nn.Module) -> None:
    torch.manual_seed(7)
    fresh = {name: torch.rand_like(each) for name, each in net.state_dict().items()}
    with pytest.raises(Exception, match=r".+"):  # whatever gloo says of a peer that is gone
        dcp.save({"model": fresh}, storage_writer=DyingWriter(folder, "run", step=9))
    print("done", flush=True)
    os._exit(0)  # the group is broken, and leaving it in good order would wait for the other rank


def load(folder: Path) -> None:
    net, optimizer = trained(seed=99)
    state = state_of(net, optimizer)
    state["progress"] = {"step": None, "betas": None, "seen": None}
    dcp.load(state, storage_reader=TensorDBReader(folder, "run", step=2))
    assert state["progress"] == {"step": 2, "betas": (0.9, 0.999), "seen": [1, 2]}
    set_state_dict(net, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
    gathered = whole(state_of(net, optimizer))
    with TensorStorage(folder, read_only=True) as db:
        expected = db.checkpoints.load("expected")["state"]["tensors"]
    assert gathered.keys() == expected.keys()
    assert all(torch.equal(gathered[name], each) for name, each in expected.items())


def work(task: str, rank: int, world: int, folder: Path) -> None:
    """Be one rank, which writes what it says to a log of its own."""
    with folder.with_name(f"{task}-{world}-{rank}.log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rendezvous = f"file://{folder.parent}/{task}-{world}.rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    globals()[task](folder)
    dist.destroy_process_group()
    print("done", flush=True)


def main() -> None:
    folder = Path(sys.argv[1])
    context = multiprocessing.get_context("fork")
    for group in sys.argv[2:]:
        task, _, world = group.partition("-")
        ranks = [context.Process(target=work, args=(task, rank, int(world), folder)) for rank in range(int(world))]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()


if __name__ == "__main__":
    main()
