"""A checkpoint loaded lazily reads its tensors when they are asked for; names that clash are names all the same."""

import torch
from torch import nn

from tensordb import TensorStorage


def test_tensors_of_a_lazy_load_are_read_when_asked_for() -> None:
    model = nn.Linear(3, 2)
    with TensorStorage(None) as db:
        db.checkpoints.save(
            "run", model, state={"tied": [model.weight, model.weight], "sparse": torch.eye(3).to_sparse()}
        )
        tree = db.checkpoints.load("run", lazy=True)
        weight = tree["model"]["weight"]
        assert (weight.shape, weight.dtype) == (torch.Size([2, 3]), torch.float32)
        assert torch.equal(weight.load(), model.weight)
        assert torch.equal(weight[1:, 0], model.weight[1:, 0])
        assert tree["state"]["tied"][0] is tree["state"]["tied"][1]
        assert torch.equal(tree["state"]["sparse"].to_dense(), torch.eye(3))


def test_states_whose_dotted_names_clash_are_saved_and_loaded_by_role() -> None:
    model = {"a": {"b": torch.ones(2)}, "a.b": torch.zeros(2)}
    with TensorStorage(None) as db:
        db.checkpoints.save("run", model, state={"x": torch.ones(1)}, preset={"model": "lossless"})
        loaded = db.checkpoints.load("run", keys="model")
        assert loaded.keys() == {"model"}
        assert loaded["model"]["a"]["b"].tolist() == [1.0, 1.0]
        assert loaded["model"]["a.b"].tolist() == [0.0, 0.0]
