"""What is easily got wrong is an error, or a warning, that says what to do instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tensordb import TensorStorage
from tensordb.errors import CheckpointNotFoundError, InvalidInputError

from .training import Training


def filled(db: TensorStorage) -> nn.Linear:
    model = nn.Linear(3, 2)
    db.checkpoints.save("baseline", model, torch.optim.SGD(model.parameters()), state={"seen": 3}, step=1, rng=False)
    return model


def test_a_key_that_names_nothing_is_an_error_that_names_the_nearest(db: TensorStorage) -> None:
    filled(db)
    with pytest.raises(InvalidInputError, match=r"'model\.bais'.*did you mean 'model\.bias'\?"):
        db.checkpoints.load("baseline", keys=["model.bais", "model.weight"])
    with pytest.raises(InvalidInputError, match=r"'model\.w\?\?'"):
        db.checkpoints.load("baseline", keys=["model", "model.w??"])
    with pytest.raises(InvalidInputError, match=r"neither .*'model\.wieght'.*'model\.weight'"):
        db.checkpoints.diff("baseline", "baseline", keys="model.wieght")
    tree = db.checkpoints.load("baseline", keys=["model.weight", "scheduler", "state.seen"])
    assert (list(tree), tree["state"]) == (["model", "state"], {"seen": 3})


def test_a_key_that_names_nothing_leaves_a_module_as_it_was(db: TensorStorage) -> None:
    filled(db)
    other = nn.Linear(3, 2)
    before = other.weight.detach().clone()
    with pytest.raises(InvalidInputError, match="bais"):
        db.checkpoints.load("baseline", into=other, keys=["model.weight", "model.bais"], strict=False)
    assert torch.equal(other.weight, before)


def test_into_and_lazy_exclude_each_other(db: TensorStorage) -> None:
    model = filled(db)
    with pytest.raises(InvalidInputError, match=r"lazy=True.*into="):
        db.checkpoints.load("baseline", into=model, lazy=True)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_a_wrapped_model_is_told_by_its_prefix(db: TensorStorage, prefix: str) -> None:
    model = nn.Linear(3, 2)
    db.checkpoints.save("wrapped", {prefix + key: value for key, value in model.state_dict().items()})
    db.checkpoints.save("plain", model)
    outer: nn.Module = nn.Linear(3, 2)
    for name in reversed(prefix.split(".")[:-1]):
        outer = nn.ModuleDict({name: outer})
    for strict in (True, False):
        with pytest.raises(InvalidInputError, match=f"'{prefix}'.*removeprefix"):
            db.checkpoints.load("wrapped", into=nn.Linear(3, 2), strict=strict)
        with pytest.raises(InvalidInputError, match=f"'{prefix}'.*model.{prefix[:-1]}"):
            db.checkpoints.load("plain", into=outer, strict=strict)


def test_a_model_with_no_name_in_common_is_refused_and_one_with_some_is_not(db: TensorStorage) -> None:
    filled(db)
    with pytest.raises(InvalidInputError, match="no name in common"):
        db.checkpoints.load("baseline", into=Odd(), strict=False)
    report = db.checkpoints.load("baseline", into=nn.Linear(3, 2, bias=False), strict=False)
    assert report.unexpected == ("model.bias",)
    assert db.checkpoints.load("baseline", into=nn.ReLU(), strict=False).missing == ()


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Parameter(torch.ones(2))


def test_resuming_without_what_was_saved_warns(db: TensorStorage) -> None:
    training = Training()
    training.step()
    db.checkpoints.save("run", training.model, **training.parts(), state={"seen": 1}, step=1)
    with pytest.warns(UserWarning, match="without its scheduler, state"):
        db.checkpoints.resume("run", training.model, training.optimizer)
    assert db.checkpoints.resume("run", training.model, **training.parts(), state={}) is not None  # without a word


def test_resuming_what_was_never_saved_says_what_was(db: TensorStorage) -> None:
    db.checkpoints.save("run", state={"seen": 1}, step=2, rng=False)
    with pytest.raises(InvalidInputError, match=r"no 'model' \(it has: state\)"):
        db.checkpoints.resume("run", nn.Linear(3, 2))
    with pytest.warns(UserWarning, match="without its state"):
        found = db.checkpoints.resume("run")
    assert found is not None
    assert found.step == 2


def test_the_best_checkpoint_of_several_metrics_is_tagged_forked_and_deleted(db: TensorStorage) -> None:
    for step in range(3):
        db.checkpoints.save("run", {"w": torch.ones(2)}, step=step, metrics={"loss": step, "f1": step}, rng=False)
    assert db.checkpoints.tag("run", "good", which="best", metric="loss").step == 0
    assert db.checkpoints.fork("run", None, "fork", which="best", metric="f1", mode="max").step == 2
    assert db.checkpoints.delete("run", which="best", metric="loss").step == 0


PLACES: list[Any] = [
    *("cpu", torch.device("cpu"), {"cpu": "cpu"}, {"cuda:0": "cpu"}, {}, lambda storage, location: storage, None)
]
NO_PLACES: list[Any] = ["gpu", "cuda:99", {"cpu": "gpu"}, lambda storage: storage, 1.5, "", object()]


def test_a_place_is_given_as_to_torch_load(db: TensorStorage) -> None:
    model = filled(db)
    for place in PLACES:
        assert torch.equal(db.checkpoints.load("baseline", map_location=place)["model"]["weight"], model.weight)


def test_a_place_that_is_none_is_refused_with_a_remedy(db: TensorStorage) -> None:
    filled(db)
    for place in NO_PLACES:
        with pytest.raises(InvalidInputError, match=r"map_location is .*give 'cpu'"):
            db.checkpoints.load("baseline", map_location=place)


def test_nothing_is_loaded_into_a_module_from_where_there_are_no_values(db: TensorStorage) -> None:
    model = filled(db)
    before = model.weight.detach().clone()
    with pytest.raises(InvalidInputError, match="'meta'"):
        db.checkpoints.load("baseline", into=model, map_location="meta")
    assert torch.equal(model.weight, before)


def test_a_lazy_tensor_goes_into_functions_and_says_how_to_get_its_methods(db: TensorStorage) -> None:
    model = filled(db)
    state = db.checkpoints.load("baseline", lazy=True)["model"]
    lazy = state["weight"]
    assert torch.equal(torch.stack([lazy, lazy])[1], model.weight)
    assert torch.equal(model.weight + lazy, lazy + model.weight)
    other = nn.Linear(3, 2)
    other.load_state_dict(state)
    assert torch.equal(other.weight, model.weight)
    assert torch.as_tensor(lazy.load()).shape == (2, 3)
    assert lazy.__array__("float64").tolist() == model.weight.detach().double().tolist()
    with pytest.raises(AttributeError, match=r"\.load\(\)\.mean"):
        lazy.mean()
    with pytest.raises(AttributeError, match=r"no attribute 'foo'$"):
        _ = lazy.foo
    for wrong in (torch.as_tensor, len, torch.tensor):
        with pytest.raises(InvalidInputError, match=r"\.load\(\) is the tensor"):
            wrong(lazy)  # type: ignore[operator]


def test_a_lazy_tensor_of_a_dtype_that_numpy_lacks_says_so(db: TensorStorage) -> None:
    db.checkpoints.save("run", {"w": torch.ones(2).bfloat16()})
    with pytest.raises(InvalidInputError, match=r"float\(\)"):
        db.checkpoints.load("run", lazy=True)["model"]["w"].__array__()


def test_a_state_dict_is_not_loaded_into(db: TensorStorage) -> None:
    model = filled(db)
    with pytest.raises(InvalidInputError, match=r"'weight', which is no role .*give the module"):
        db.checkpoints.load("baseline", into=model.state_dict())


def test_the_optimizer_may_follow_the_model(db: TensorStorage) -> None:
    filled(db)
    assert list(db.checkpoints.load("baseline")) == ["model", "optimizer", "state"]
    with pytest.raises(InvalidInputError, match="optimizer is a int"):
        db.checkpoints.save("baseline", nn.Linear(3, 2), 5)


def test_a_checkpoint_that_is_being_written_is_waited_for(db: TensorStorage) -> None:
    pending = db.checkpoints.save("run", {"w": torch.ones(2)}, step=4, async_=True)
    assert db.checkpoints.load(pending)["model"]["w"].tolist() == [1, 1]
    assert db.checkpoints.get(pending).step == 4
    assert db.checkpoints.log(pending)[0].step == 4
    assert db.checkpoints.tag(pending, "t").tags == ("t",)
    assert db.checkpoints.fork(pending, None, "new").step == 4
    assert db.checkpoints.diff(pending, "new", keys="model").counts == {"equal": 1}
    with db.transaction():
        assert db.checkpoints.delete(pending).step == 4


def test_a_run_that_is_not_there_is_told_from_many_by_its_name(db: TensorStorage) -> None:
    filled(db)
    for number in range(12):
        db.checkpoints.save(f"x{number}", {"w": torch.ones(2)}, rng=False)
    for ask in (db.checkpoints.load, db.checkpoints.list, db.checkpoints.delete_run, db.maintenance.verify_checkpoints):
        with pytest.raises(CheckpointNotFoundError, match="did you mean 'baseline'"):
            ask("basline")  # type: ignore[operator]
    db.checkpoints.tag("x1", "good")
    with pytest.raises(CheckpointNotFoundError, match="did you mean 'good'"):
        db.checkpoints.load("x1", which="godo")


def test_deleting_a_run_by_one_of_its_checkpoints_is_refused(db: TensorStorage) -> None:
    filled(db)
    found = db.checkpoints.get("baseline")
    for wrong in (found, found.id):
        with pytest.raises(InvalidInputError, match="of run 'baseline'; delete"):
            db.checkpoints.delete_run(wrong)  # type: ignore[arg-type]
    assert len(db.checkpoints.list("baseline")) == 1
    db.checkpoints.save(found.id, {"w": torch.ones(2)}, rng=False)
    assert db.checkpoints.delete_run(found.id) == 1


def test_a_weight_by_its_name_is_pointed_to_where_names_are_found(db: TensorStorage) -> None:
    db.weights.store(torch.ones(3), name="layer.0.weight")
    with pytest.raises(InvalidInputError, match=r"list_weights\(name='layer\.0\.weight'\)"):
        db.weights.load("layer.0.weight")
