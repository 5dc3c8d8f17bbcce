"""Where loaded tensors go: what `torch.load` takes as ``map_location``, asked once, before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tensordb.errors import InvalidInputError

_REMEDY = "give 'cpu', 'cuda', 'cuda:1', another device of torch, a mapping such as {'cpu': 'cuda'}, or a function"


def device_of(map_location: Any) -> torch.device | None:
    """Return the device that tensors go to, None to stay on the CPU, from where all are read.

    Args:
        map_location: A device or its name; a mapping from ``"cpu"`` to one; or a function of a storage and ``"cpu"``
            that returns the storage elsewhere. None, and what a mapping or function has nothing for, is the CPU.

    Raises:
        InvalidInputError: It is none of these, or no device that can be used here.
    """
    try:
        device = _asked(map_location)
        if device is not None:
            torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError, AttributeError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidInputError(
            f"map_location is {map_location!r}, which cannot be used here ({reason}); {_REMEDY}"
        ) from error
    return device


def _asked(map_location: Any) -> torch.device | None:
    if isinstance(map_location, Mapping):
        asked = map_location.get("cpu", map_location.get(torch.device("cpu")))
    elif callable(map_location):
        moved = map_location(torch.empty(0).untyped_storage(), "cpu")
        asked = None if moved is None else moved.device
    else:
        asked = map_location
    return None if asked is None else torch.device(asked)


def placed(tensor: torch.Tensor, device: torch.device | None) -> torch.Tensor:
    """Return a tensor on a device, None for where it is."""
    return tensor if device is None else tensor.to(device)
