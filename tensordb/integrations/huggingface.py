"""Trainings of `transformers.Trainer` in a database: saved by a callback, and gone on with from there.

A checkpoint has model, optimizer, scheduler, gradient scaler and generators in their roles. Its ``"state"`` has what
else the trainer knows: ``trainer_state`` (its `TrainerState`) and ``config`` (of the model, if it has one).
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tensordb.checkpoints.checkpoint import Checkpoint
from tensordb.encoding.presets import CompressionConfig
from tensordb.errors import CheckpointNotFoundError, InvalidInputError, MissingDependencyError
from tensordb.exchange.publishing import publication
from tensordb.integrations.module_files import model_file, write_tensors
from tensordb.integrations.opening import Opening
from tensordb.storage import TensorStorage

try:
    from transformers import TrainerCallback
except ImportError as _error:
    raise MissingDependencyError("this needs transformers: pip install 'tensordb[huggingface]'") from _error

_MODEL = "model.safetensors"
_RNG_NAMES = {"python": "python", "numpy": "numpy", "torch": "cpu"}


class TensorDBCallback(TrainerCallback):  # type: ignore[misc]
    """Saves a trainer's checkpoints in a database: ``Trainer(…, callbacks=[TensorDBCallback(db, "run")])``.

    It saves whenever the trainer has saved, whenever it has evaluated, and every `save_steps`, once for a step. The
    metrics are those that the trainer logged for that step, and those of the evaluation. A trainer writes a folder
    of its own each time that it saves: ``TrainingArguments(save_strategy="no")`` with `save_steps` needs none.

    Args:
        db_or_path: The database, or its folder, which is opened when it is needed and closed when the training ends.
        run: Name of the run.
        preset: As for `db.checkpoints.save`.
        async_: Go on with the training as soon as the state is copied.
        keep_last: Delete all but the newest so many checkpoints of the run, except those with tags; None to keep all.
            A checkpoint more may be there while the training goes on.
        save_steps: Save every so many steps too.
        metadata: JSON-like values by name, for each checkpoint.

    Raises:
        MissingDependencyError: On import: transformers is not installed.
        InvalidInputError: When the training begins: the model is split over processes (FSDP, DeepSpeed).
    """

    def __init__(
        self,
        db_or_path: TensorStorage | str | os.PathLike[str],
        run: str,
        *,
        preset: str | CompressionConfig | Mapping[str, str | CompressionConfig] | None = None,
        async_: bool = True,
        keep_last: int | None = None,
        save_steps: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self._opening = Opening(db_or_path)
        self._run = run
        self._preset = preset
        self._async = async_
        self._keep_last = _count(keep_last, "keep_last")
        self._save_steps = _count(save_steps, "save_steps")
        self._metadata = metadata
        self._saved_step: int | None = None
        self._training = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Begin anew; a step that was saved by an earlier training is saved again."""
        if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
            raise InvalidInputError("a model that FSDP or DeepSpeed splits is not whole in any process; train without")
        self._saved_step = state.global_step
        self._training = True

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Save where a multiple of `save_steps` is reached and nothing else will."""
        if self._save_steps and state.global_step % self._save_steps == 0:
            later = control.should_save or control.should_evaluate
            self._save(state, {}, given, when=not later)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any] | None = None, **given: Any
    ) -> None:
        """Save what was evaluated, unless the trainer saves it in a moment, when the metrics are known too."""
        self._save(state, metrics or {}, given, when=not control.should_save)

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Save what the trainer saves."""
        self._save(state, {}, given)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Wait until everything is written."""
        self._training = False
        if state.is_world_process_zero:
            self._prune()
        self._opening.close()

    def _save(self, state: Any, metrics: Mapping[str, Any], given: Mapping[str, Any], *, when: bool = True) -> None:
        step = state.global_step
        if not when or not self._training or step == self._saved_step or not state.is_world_process_zero:
            return
        model, optimizer = given["model"], given["optimizer"]
        config: Any = getattr(model, "config", None)
        known = {"trainer_state": json.loads(json.dumps(dataclasses.asdict(state)))}
        if hasattr(config, "to_json_string"):
            known["config"] = json.loads(config.to_json_string())
        self._prune()
        save: Any = self._opening.db.checkpoints.save
        save(
            self._run,
            model,
            optimizer=optimizer,
            scheduler=given["lr_scheduler"],
            scaler=getattr(optimizer, "scaler", None),
            state=known,
            step=step,
            epoch=state.epoch,
            metrics=_metrics(state, metrics),
            metadata=self._metadata,
            preset=self._preset,
            async_=self._async,
        )
        self._saved_step = step

    def _prune(self) -> None:
        checkpoints = self._opening.db.checkpoints
        if self._keep_last is not None and self._run in checkpoints.runs():
            checkpoints.prune(self._run, keep_last=self._keep_last)


def resume_training(
    trainer: Any,
    db_or_path: TensorStorage | str | os.PathLike[str],
    run: str | Checkpoint,
    *,
    step: int | None = None,
    which: str = "latest",
    **settings: Any,
) -> Any:
    """Train on from a checkpoint that a `TensorDBCallback` saved, as if the training had not been interrupted.

    Args:
        trainer: A trainer made like the one that was interrupted.
        db_or_path: The database, or its folder.
        run: The run, a checkpoint id, or a `Checkpoint`; a run without checkpoints is begun.
        step: The newest checkpoint of this step.
        which: ``"latest"``, or a tag.
        **settings: For `trainer.train`.

    Returns:
        What `trainer.train` returns. While it runs, the checkpoint lies in a temporary folder in the trainer's
        ``output_dir``, since a trainer takes its checkpoints from files.

    Raises:
        CheckpointNotFoundError: There is no such step, tag or id.
    """
    opening = Opening(db_or_path)
    try:
        Path(trainer.args.output_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=trainer.args.output_dir, prefix=".resume-") as temporary:
            try:
                found = opening.db.checkpoints.get(run, step=step, which=which)
            except CheckpointNotFoundError:
                if step is None and which == "latest" and isinstance(run, str):
                    return trainer.train(**settings)
                raise
            folder = write_trainer_folder(opening.db, found, Path(temporary) / "checkpoint")
            opening.close()
            return trainer.train(resume_from_checkpoint=str(folder), **settings)
    finally:
        opening.close()


def write_trainer_folder(
    db: TensorStorage,
    run_or_id: str | Checkpoint,
    folder: str | os.PathLike[str],
    *,
    step: int | None = None,
    which: str = "latest",
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint as the folder that ``trainer.train(resume_from_checkpoint=folder)`` takes.

    It has ``model.safetensors``, ``config.json``, ``trainer_state.json``, ``optimizer.pt``, ``scheduler.pt``,
    ``scaler.pt`` and ``rng_state.pth``, each if the checkpoint has what it is for.

    Args:
        db: The database.
        run_or_id: A run, a checkpoint id, or a `Checkpoint`.
        folder: Where; made where it is missing.
        step: The newest checkpoint of this step.
        which: ``"latest"``, or a tag.
        overwrite: Replace files that are there.

    Returns:
        The folder.

    Raises:
        AlreadyExistsError: A file is there; nothing was written.
        InvalidInputError: No `TensorDBCallback` saved the checkpoint.
    """
    found = db.checkpoints.get(run_or_id, step=step, which=which)
    tree = db.checkpoints.load(found, keys=["optimizer", "scheduler", "scaler", "state", "rng"]) or {}
    model = db.checkpoints.load(found, keys="model", lazy=True) or {}
    known = tree.get("state")
    if "model" not in model or not isinstance(known, Mapping) or "trainer_state" not in known:
        raise InvalidInputError(f"{found} was not saved by a TensorDBCallback; load it by db.checkpoints.load")
    texts = {"trainer_state.json": known["trainer_state"], "config.json": known.get("config")}
    states = {"optimizer.pt": tree.get("optimizer"), "scheduler.pt": tree.get("scheduler")}
    states |= {"scaler.pt": tree.get("scaler"), "rng_state.pth": _generators(tree.get("rng"))}
    weights = model_file(model["model"], _MODEL)
    names = [_MODEL, *(name for name, value in (states | texts).items() if value is not None)]
    with publication(Path(folder), names, overwrite=overwrite) as new:
        for name in names:
            with new.file(name) as file:
                if name == _MODEL:
                    write_tensors(file, weights)
                elif name in texts:
                    file.write((json.dumps(texts[name], indent=2, sort_keys=True) + "\n").encode("utf-8"))
                else:
                    torch.save(states[name], file)
    return Path(folder)


def _generators(states: Any) -> dict[str, Any] | None:
    """Return the states of generators as a trainer calls them."""
    if not isinstance(states, Mapping):
        return None
    named = {_RNG_NAMES[name]: state for name, state in states.items() if name in _RNG_NAMES}
    return named | ({"cuda": states["cuda"][0]} if states.get("cuda") else {})


def _metrics(state: Any, evaluated: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers that a trainer logged for its step, and those of its evaluation."""
    logs = [entry for entry in state.log_history if entry.get("step") == state.global_step]
    named = {name: value for entry in [*logs, evaluated] for name, value in entry.items()}
    return {
        name: value
        for name, value in named.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in ("step", "epoch")
    }


def _count(value: Any, what: str) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise InvalidInputError(f"{what} is {value!r}; give an int from 1, or None")
    return value
