"""Tensors that the ranks of a process group share, saved as whole ones.

All ranks gather them together, which only works when all ranks save; the first one writes for them all. Nothing here
loads `torch.distributed`: no such tensor exists before others did.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from tensordb.errors import InvalidInputError, StoreError, TensorDBError

T = TypeVar("T")


def is_shared(tensor: Any) -> bool:
    """Tell whether this is a tensor of which each rank has a part, or a copy."""
    distributed = sys.modules.get("torch.distributed.tensor")
    return distributed is not None and isinstance(tensor, distributed.DTensor)


def gathered(tensor: Any) -> torch.Tensor:
    """Return the whole tensor; all ranks have to call this.

    Raises:
        InvalidInputError: Not all ranks have a part of it, so that the first cannot write for all.
    """
    world = torch.distributed.get_world_size()
    if tensor.device_mesh.size() != world:
        raise InvalidInputError(
            f"a DTensor on {tensor.device_mesh.size()} of {world} ranks cannot be gathered for the first rank to save "
            "for all; save with torch.distributed.checkpoint and tensordb.integrations.dcp"
        )
    whole: torch.Tensor = tensor.full_tensor()
    return whole


def on_first_rank(work: Callable[[], T]) -> T:
    """Call `work` on the first rank, and return on all of them what it returned, or raise what it raised."""
    if torch.distributed.get_rank() != 0:
        received: T = _received()
        return received
    try:
        result = work()
    except BaseException as error:  # the other ranks wait, whatever it is
        known = isinstance(error, TensorDBError)
        _send(error if known else StoreError(f"the first rank could not save the checkpoint: {error!r}"))
        raise
    _send(result)
    return result


def _send(outcome: Any) -> None:
    torch.distributed.broadcast_object_list([outcome])


def _received() -> Any:
    outcome: list[Any] = [None]
    torch.distributed.broadcast_object_list(outcome)
    if isinstance(outcome[0], TensorDBError):
        raise outcome[0]
    return outcome[0]
