"""A nested training state as a document and named tensors, and back: pure, without files, pickle or code in data."""

from tensordb.checkpoints.tree.flattening import (
    Flattened,
    Leaf,
    flatten,
    tensor_paths,
    unflatten,
    unflatten_values,
)
from tensordb.checkpoints.tree.objects import Deferred

__all__ = ["Deferred", "Flattened", "Leaf", "flatten", "tensor_paths", "unflatten", "unflatten_values"]
