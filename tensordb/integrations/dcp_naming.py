"""What the two halves of `tensordb.integrations.dcp` are told: which database, and what dcp calls a checkpoint."""

from __future__ import annotations

import os
from typing import Any

from tensordb.checkpoints.requests import check_name, check_step
from tensordb.storage import TensorStorage

PathOrStorage = str | os.PathLike[str] | TensorStorage


def step_or_text(checkpoint_id: Any) -> tuple[int | None, str | None]:
    """Return a dcp checkpoint id as a step, or as text."""
    if isinstance(checkpoint_id, int):
        return check_step(checkpoint_id), None
    text = check_name(os.fspath(checkpoint_id), "checkpoint_id")
    return (check_step(int(text)), None) if text.isascii() and text.isdigit() else (None, text)


def is_checkpoint_id(value: Any) -> bool:
    """Tell whether this can be a checkpoint id of dcp."""
    return isinstance(value, str | os.PathLike | int)
