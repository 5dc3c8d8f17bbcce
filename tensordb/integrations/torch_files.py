"""Files of `torch.save` into a database: read without running anything that is in them, and put in their roles.

What a file holds is found by the names in it:

- a state dict by itself (names with tensors, and nothing else) is the ``"model"``;
- Lightning's files (with ``"pytorch-lightning_version"``) are taken apart as `lightning_parts` says;
- other dicts: the first of ``model``, ``model_state_dict``, ``state_dict``, ``net`` that is a dict is the model, of
  ``optimizer``, ``optimizer_state_dict``, ``optim`` the optimizer, of ``scheduler``, ``lr_scheduler``,
  ``scheduler_state_dict``, ``lr_scheduler_state_dict`` the scheduler, of ``scaler``, ``grad_scaler``,
  ``scaler_state_dict`` the scaler;
- everything else in a file, or the whole of one that is none of these, is the ``"state"``.
"""

from __future__ import annotations

import mmap
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch

from tensordb.checkpoints.checkpoint import Checkpoint
from tensordb.encoding.presets import CompressionConfig
from tensordb.errors import InvalidInputError
from tensordb.exchange.rows import check_file
from tensordb.integrations.lightning_parts import VERSION_KEY, numbers_of, roles_of
from tensordb.storage import TensorStorage

_ROLE_KEYS = {
    "model": ("model", "model_state_dict", "state_dict", "net"),
    "optimizer": ("optimizer", "optimizer_state_dict", "optim"),
    "scheduler": ("scheduler", "lr_scheduler", "scheduler_state_dict", "lr_scheduler_state_dict"),
    "scaler": ("scaler", "grad_scaler", "scaler_state_dict"),
}
_REFUSED = re.compile(r"GLOBAL ([\w.]+)|[Uu]nsupported (?:global|class) ([\w.]+)")


def import_torch(
    db: TensorStorage,
    path: str | os.PathLike[str],
    run: str,
    *,
    step: int | None = None,
    epoch: float | None = None,
    metadata: Mapping[str, Any] | None = None,
    preset: str | CompressionConfig | Mapping[str, str | CompressionConfig] | None = None,
) -> Checkpoint:
    """Save what a file of `torch.save` holds as a checkpoint.

    The file is read by ``torch.load(weights_only=True)``, which makes tensors and plain values and runs no code, and
    mapped where its format allows that, so that a model larger than memory can be imported.

    Args:
        db: The database.
        path: The file (``.pt``, ``.pth``, ``.bin``, ``.ckpt``).
        run: Name of the run, made when it is new.
        step: As for `db.checkpoints.save`; None takes the file's ``"global_step"`` or ``"step"``, if it has one.
        epoch: Likewise; None takes the file's ``"epoch"``.
        metadata: JSON-like values by name.
        preset: As for `db.checkpoints.save`.

    Returns:
        The checkpoint. Which role each part of the file is in, says the module's documentation.

    Raises:
        InvalidInputError: The file is damaged, or would have to run code to be read; the message names it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, TensorStorage(None) as db:
    ...     torch.save({"model": {"weight": torch.ones(2)}, "epoch": 3}, f"{folder}/last.pt")
    ...     checkpoint = import_torch(db, f"{folder}/last.pt", "old")
    ...     checkpoint.epoch, db.checkpoints.load(checkpoint)["model"]
    (3, {'weight': tensor([1., 1.])})
    """
    roles = _roles(_read(Path(path)))
    numbers = numbers_of(roles.get("state"))
    saved: Checkpoint = db.checkpoints.save(
        run,
        roles.pop("model", None),
        **roles,
        step=numbers["step"] if step is None else step,
        epoch=numbers["epoch"] if epoch is None else epoch,
        metadata=metadata,
        preset=preset,
        rng=False,
    )
    return saved


def _read(path: Path) -> Any:
    check_file(path)
    try:
        if zipfile.is_zipfile(path):
            return torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=True)
        # A map, unlike a file, allocates nothing for text that is said to be longer than the file.
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return torch.load(cast("IO[bytes]", data), map_location="cpu", weights_only=True)
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error}; give a file of torch.save") from error
    except pickle.UnpicklingError as error:
        found = _REFUSED.search(str(error))
        what = f"{found[1] or found[2]}" if found else "code"
        raise InvalidInputError(
            f"{path} is not read, since it holds more than tensors and plain values: it needs {what}. Where you "
            "trust the file, read it with torch.load(weights_only=False) and give what you need of it to "
            "db.checkpoints.save, or allow the class by torch.serialization.add_safe_globals"
        ) from error
    except Exception as error:  # a file made up to do harm can make the reader fail in any way
        raise InvalidInputError(f"{path} is damaged, or no file of torch.save: {error}") from error


def _roles(content: Any) -> dict[str, Any]:
    """Return what a file holds, by role."""
    if not isinstance(content, Mapping):
        return {"state": content}
    if _is_state_dict(content):
        return {"model": content}
    if VERSION_KEY in content:
        return roles_of(content)
    rest = dict(content)
    roles: dict[str, Any] = {}
    for role, keys in _ROLE_KEYS.items():
        found = [key for key in keys if isinstance(rest.get(key), Mapping)]
        if found:
            roles[role] = rest.pop(found[0])
    return roles | ({"state": rest} if rest or not roles else {})


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    """Tell whether this is what a module's `state_dict` gives: names with tensors, and extra states as they come."""
    named = [(key, value) for key, value in content.items() if not str(key).endswith("_extra_state")]
    return bool(named) and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in named)
