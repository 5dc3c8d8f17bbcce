"""tensordb among the ways to keep checkpoints, under several presets, and what each of its ideas gives.

The ideas come one on top of the other: planes with Huffman codes alone; the filter and codec chosen for each tensor
(zero bitmaps among them), equal tensors once; differences from checkpoints before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from checkpoint_peers import CheckpointStore
from state_tree import State

from tensordb import CompressionConfig, TensorStorage

_ROLES = ("model", "optimizer")
_PLANES = CompressionConfig("zstd", compression_kwargs={"filter": "planes", "level": 1})


class TensorDB(CheckpointStore):
    """One run of a database with the default preset: every idea at once."""

    name = "tensordb lossless"
    package = "tensordb"
    preset: ClassVar[Any] = "lossless"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._db = TensorStorage(folder / "db")

    def save(self, index: int, state: State) -> None:
        """Save; it is durable when this returns."""
        parts = {role: state[role] for role in _ROLES if role in state}
        rest = {key: value for key, value in state.items() if key not in parts}
        model = parts.pop("model", None)
        self._db.checkpoints.save(
            self._run(index),
            model,
            **parts,
            state={"keys": list(state), **rest},
            step=index,
            preset=self.preset,
            rng=False,
        )

    def load(self, index: int) -> State:
        """Load, verified."""
        tree = self._db.checkpoints.load(self._run(index), step=index)
        parts = {**{role: tree[role] for role in _ROLES if role in tree}, **tree["state"]}
        return {key: parts[key] for key in parts["keys"]}

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def _run(self, index: int) -> str:
        return "run"


class TensorDBNone(TensorDB):
    """Stored as it is; equal tensors once."""

    name = "tensordb none"
    preset = "none"


class TensorDBPlanes(TensorDB):
    """Planes and zstd for every tensor; equal tensors once."""

    name = "tensordb planes"
    preset = _PLANES


class TensorDBAlone(TensorDB):
    """The default preset without differences: each checkpoint begins a run."""

    name = "tensordb alone"

    def _run(self, index: int) -> str:
        return f"run {index}"


TENSORDB_STORES: tuple[type[CheckpointStore], ...] = (TensorDBNone, TensorDBPlanes, TensorDBAlone, TensorDB)
