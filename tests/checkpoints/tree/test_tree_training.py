"""What torch's own modules, optimizers, schedulers and scalers save comes back into fresh ones."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from tensordb.checkpoints.tree import flatten

from .trees import assert_same, back, names


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.LSTM(4, 2, batch_first=True))


def loss_of(module):
    torch.manual_seed(1)
    out, _ = module(torch.randn(8, 3))
    return out.square().sum()


def train(module, optimizer, steps=2):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(module)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, amsgrad=True),
    "AdamW": torch.optim.AdamW,
    "AdamW with a tensor as its rate": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01)),
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "LBFGS": torch.optim.LBFGS,
    "Adafactor": torch.optim.Adafactor,
    "Adagrad": torch.optim.Adagrad,
    "RMSprop": lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.5),
    "Rprop": torch.optim.Rprop,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "Adamax": torch.optim.Adamax,
    "ASGD": torch.optim.ASGD,
    "Adadelta": torch.optim.Adadelta,
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_goes_on_as_if_it_had_not_stopped(make):
    module = model()
    optimizer = make(module.parameters())
    train(module, optimizer)
    state = {"model": module.state_dict(), "optimizer": optimizer.state_dict()}
    result = back(state)
    assert_same(result, state)

    resumed = model()
    resumed_optimizer = make(resumed.parameters())
    resumed.load_state_dict(result["model"])
    resumed_optimizer.load_state_dict(result["optimizer"])
    train(module, optimizer)
    train(resumed, resumed_optimizer)
    assert_same(back(resumed.state_dict()), back(module.state_dict()))


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3, 3]),
    "ConstantLR": lr_scheduler.ConstantLR,
    "LinearLR": lr_scheduler.LinearLR,
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lr_scheduler.PolynomialLR,
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


def advance(optimizer, scheduler, steps=3):
    for _ in range(steps):
        optimizer.step()
        scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_schedule_goes_on_as_if_it_had_not_stopped(make):
    def fresh():
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
        return optimizer, make(optimizer)

    optimizer, scheduler = fresh()
    advance(optimizer, scheduler)
    state = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    result = back(state)
    assert_same(result, state)

    resumed_optimizer, resumed = fresh()
    resumed_optimizer.load_state_dict(result["optimizer"])
    resumed.load_state_dict(result["scheduler"])
    advance(optimizer, scheduler)
    advance(resumed_optimizer, resumed)
    assert_same(resumed.state_dict(), scheduler.state_dict())
    assert resumed_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_the_state_of_a_gradient_scaler_comes_back():
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    scaler.scale(optimizer.param_groups[0]["params"][0].sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    state = scaler.state_dict()
    assert_same(back({"scaler": state})["scaler"], state)
    torch.amp.GradScaler("cpu").load_state_dict(back(state))


def test_the_names_of_a_training_state_are_those_of_its_keys():
    module = model()
    optimizer = torch.optim.AdamW(module.parameters())
    train(module, optimizer)
    found = names({"model": module.state_dict(), "optimizer": optimizer.state_dict()})
    assert found[:2] == ["model.0.weight", "model.0.bias"]
    assert "model.1.num_batches_tracked" in found
    assert {"optimizer.state.0.step", "optimizer.state.0.exp_avg", "optimizer.state.7.exp_avg_sq"} <= set(found)


def test_a_swa_model_and_the_state_of_a_whole_module_come_back():
    averaged = torch.optim.swa_utils.AveragedModel(model())
    averaged.update_parameters(model())
    state = averaged.state_dict()
    result = back({"ema": state})["ema"]
    assert_same(result, state)
    torch.optim.swa_utils.AveragedModel(model()).load_state_dict(result)


def test_a_distributed_tensor_is_stored_whole(tmp_path):
    torch_distributed = pytest.importorskip("torch.distributed")
    if not torch_distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch_distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        values = torch.arange(6.0).reshape(3, 2)
        weight = nn.Parameter(distribute_tensor(values, mesh, [Shard(0)]))
        assert names({"w": weight, "tied": weight}) == ["w"]
        result = back({"w": weight})["w"]
    finally:
        torch_distributed.destroy_process_group()
    assert type(result) is nn.Parameter
    assert torch.equal(result, values)


def test_flattening_does_not_load_torch_distributed_tensor():
    code = (
        "import sys, torch; from tensordb.checkpoints.tree import flatten; flatten({'x': torch.ones(1)});"
        "sys.exit('torch.distributed.tensor' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_state_that_is_not_a_tree_says_where():
    module = model()
    with pytest.raises(ValueError, match=r"^optimizer is a torch\.optim\.adamw\.AdamW.*state_dict\(\)"):
        flatten({"model": module.state_dict(), "optimizer": torch.optim.AdamW(module.parameters())})
