"""The sequences of checkpoints that storage is measured on: what training runs wrote, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from training_run import read_checkpoints

State = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Material:
    """One sequence.

    Attributes:
        run: The training run it comes from.
        kept: From a checkpoint of the run to what is stored.
    """

    run: str
    kept: Callable[[State], State]

    def states(self, folder: Path) -> Iterator[State]:
        """Read the sequence from the folder that runs were written to."""
        return (self.kept(state) for state in read_checkpoints(folder, self.run))


def _with_bf16_weights(state: State) -> State:
    return {**state, "model": {name: each.to(torch.bfloat16) for name, each in state["model"].items()}}


def _bf16_weights(state: State) -> State:
    return {"model": _with_bf16_weights(state)["model"], "step": state["step"]}


def _whole(state: State) -> State:
    return state


# "mixed" is what training in mixed precision leaves when the float32 master weights are not kept: weights rounded to
# bf16, moments in float32. "bf16" is pure bf16 training: the rounded weights are all there is.
MATERIALS = {
    f"{task} {kind}": Material(f"{task}-{precision}", kept)
    for task in ("minilm", "language-model")
    for kind, precision, kept in (
        ("fp32", "fp32", _whole),
        ("mixed", "fp32", _with_bf16_weights),
        ("bf16", "bf16", _whole),
        ("weights bf16", "fp32", _bf16_weights),
    )
}
