"""A nested state comes back as what it was."""

import torch

from tensordb.checkpoints.tree import flatten, tensor_paths, unflatten


def back(tree, **options):
    flat = flatten(tree)
    return unflatten(flat.document, lambda index: flat.leaves[index].tensor.clone(), **options)


def test_a_nested_dict_of_tensors_comes_back():
    weight = torch.randn(3, 2)
    state = {"model": {"layer.weight": weight, "epoch": 3}, "list": [1, (2.5, None), torch.tensor(1)]}
    result = back(state)
    assert torch.equal(result["model"]["layer.weight"], weight)
    assert result["list"][1] == (2.5, None)
    assert list(tensor_paths(flatten(state).document)) == ["model.layer.weight", "list.2"]
