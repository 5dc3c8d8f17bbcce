"""Checkpoints of a Lightning trainer in a database: a `CheckpointIO` plugin.

A path of Lightning's means the newest checkpoint of the run that was saved at it: its text is in the checkpoint's
metadata, as ``metadata["lightning"]["path"]``. At the path itself lies a pointer, a small text file, so that what
looks for files there finds them: ``ckpt_path="last"``, links, and names with a version. As with files, saving at a
path again replaces the checkpoint that was there, and removing the path deletes it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tensordb import files
from tensordb.checkpoints.checkpoint import Checkpoint
from tensordb.encoding.presets import CompressionConfig
from tensordb.errors import CheckpointNotFoundError, InvalidInputError, MissingDependencyError
from tensordb.integrations.lightning_parts import checkpoint_of, numbers_of, roles_of
from tensordb.integrations.opening import Opening
from tensordb.payloads.files import make_folders, store_error, write_all
from tensordb.storage import TensorStorage

_BASES = ("lightning.fabric.plugins.io.checkpoint_io", "lightning_fabric.plugins.io.checkpoint_io")
_KEY = "lightning"
_POINTER_NBYTES = 1 << 16


class TensorDBCheckpointIO:
    """Saves and loads a trainer's checkpoints in a database: ``Trainer(plugins=[TensorDBCheckpointIO(db, "run")])``.

    Works with `lightning` and `pytorch_lightning`, with `ModelCheckpoint` and with ``trainer.fit(ckpt_path=…)``, to
    which an id of a checkpoint may be given too. `LightningModule.load_from_checkpoint` reads files without asking
    plugins; load ``db.checkpoints.load(run)["model"]`` instead. What Lightning puts into a checkpoint (callbacks,
    loops, hyperparameters, …) is in its ``"state"``; values that cannot be stored, such as functions among the
    hyperparameters, are refused by their path: leave them out by ``self.save_hyperparameters(ignore=[…])``.

    Args:
        db_or_path: The database, or its folder, which is opened when it is needed and closed when the trainer is done.
        run: Name of the run.
        preset: As for `db.checkpoints.save`.
        async_: Go on with the training as soon as the state is copied.

    Raises:
        MissingDependencyError: Lightning is not installed.
    """

    def __init__(
        self,
        db_or_path: TensorStorage | str | os.PathLike[str],
        run: str,
        *,
        preset: str | CompressionConfig | Mapping[str, str | CompressionConfig] | None = None,
        async_: bool = False,
    ) -> None:
        _register(type(self))
        self._opening = Opening(db_or_path)
        self._run = run
        self._preset = preset
        self._async = async_
        self._replaced: list[Checkpoint] = []

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Save a trainer's checkpoint.

        Args:
            checkpoint: What the trainer made.
            path: Where Lightning thinks that it is.
            storage_options: None, or a mapping of ``"metrics"`` and ``"metadata"`` for `db.checkpoints.save`.

        Raises:
            InvalidInputError: It has something that cannot be stored; the message has its path.
        """
        options = _options(storage_options)
        text = _text(path)
        key = uuid.uuid4().hex
        roles = roles_of(checkpoint)
        self._delete_replaced()
        replaced = [each for each in self._listed() if _facts(each).get("path") == text]
        settings = {
            **roles,
            **numbers_of(roles.get("state")),
            "metrics": _scores(checkpoint, str(path)) | dict(options.get("metrics", {})),
            "metadata": {**options.get("metadata", {}), _KEY: {"path": text, "key": key}},
            "preset": self._preset,
        }
        save: Any = self._db.checkpoints.save
        save(self._run, rng=False, async_=self._async, **settings)
        _write_pointer(text, {"tensordb": "checkpoint", "run": self._run, "key": key})
        self._replaced = replaced
        if not self._async:
            self._delete_replaced()

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load the checkpoint that was saved at a path, or that has this id.

        Args:
            path: The path, a link to it, or a checkpoint id.
            map_location: Device of the tensors; None, or a function, for the CPU.
            weights_only: Taken for either: nothing that is loaded can run code.

        Raises:
            CheckpointNotFoundError: There is none.
        """
        device = map_location if isinstance(map_location, str | torch.device) else None
        found = self._find(path) or self._by_id(str(path))
        tree = self._db.checkpoints.load(found, keys=["model", "optimizer", "scheduler", "state"], map_location=device)
        return checkpoint_of(tree or {})

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete the checkpoint that was saved at a path; of a link only the link."""
        self._delete_replaced()
        text = _text(path)
        if not os.path.islink(text):
            found = self._find(path)
            if found is not None:
                self._db.checkpoints.delete(found)
        if os.path.islink(text) or _read_pointer(text):
            files.unlink(text)

    def teardown(self) -> None:
        """Wait until everything is written, and close the database if this opened it."""
        self._delete_replaced()
        self._opening.close()

    @property
    def _db(self) -> TensorStorage:
        return self._opening.db

    def _delete_replaced(self) -> None:
        """Delete what lay at a path before, once what lies there now is durable."""
        if self._replaced:
            self._db.checkpoints.wait()
        while self._replaced:
            self._db.checkpoints.delete(self._replaced.pop())

    def _listed(self) -> list[Checkpoint]:
        db = self._db
        return db.checkpoints.list(self._run) if self._run in db.checkpoints.runs() else []

    def _find(self, path: str | os.PathLike[str]) -> Checkpoint | None:
        """Return the newest checkpoint that the pointer at a path means, or that was saved at the path."""
        text = _text(path)
        key = _read_pointer(text).get("key")
        for each in reversed(self._listed()):
            facts = _facts(each)
            if facts and (facts.get("path") == text if key is None else facts.get("key") == key):
                return each
        return None

    def _by_id(self, text: str) -> Checkpoint:
        try:
            return self._db.checkpoints.get(text)
        except CheckpointNotFoundError as error:
            raise CheckpointNotFoundError(
                f"run {self._run!r} has no checkpoint that was saved at {text!r}, nor is that the id of one; "
                f"those there are: {[_facts(each).get('path', each.id) for each in self._listed()][-5:]}"
            ) from error


def _register(plugin: type) -> None:
    """Make the plugin a `CheckpointIO` to Lightning, under both names that it is installed by."""
    found = 0
    for name in _BASES:
        try:
            importlib.import_module(name).CheckpointIO.register(plugin)
            found += 1
        except ImportError:
            continue
    if not found:
        raise MissingDependencyError("this plugin needs Lightning: pip install 'tensordb[lightning]'")


def _options(options: Any) -> Mapping[str, Any]:
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not options.keys() <= {"metrics", "metadata"}:
        raise InvalidInputError(f"storage_options is {options!r}; give a mapping of 'metrics' and 'metadata'")
    return options


def _scores(checkpoint: Mapping[str, Any], path: str) -> dict[str, float]:
    """Return what `ModelCheckpoint` callbacks measured for the checkpoint at this path, and for no other."""
    callbacks = checkpoint.get("callbacks")
    states = callbacks.values() if isinstance(callbacks, Mapping) else []
    return {
        state["monitor"]: float(state["best_k_models"][path])
        for state in states
        if isinstance(state, Mapping) and state.get("monitor") and path in (state.get("best_k_models") or {})
    }


def _facts(checkpoint: Checkpoint) -> Mapping[str, Any]:
    facts = checkpoint.metadata.get(_KEY)
    return facts if isinstance(facts, Mapping) else {}


def _text(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    return text if "://" in text else os.path.abspath(text)


def _write_pointer(path: str, facts: Mapping[str, str]) -> None:
    if "://" in path:
        return
    place = Path(path)
    new = place.with_name(f".{place.name}.{facts['key']}.part")
    try:
        make_folders(place.parent)
        descriptor = files.open_file(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            write_all(descriptor, [memoryview(f"{json.dumps(facts)}\n".encode())])
            files.sync_file(descriptor)
        finally:
            os.close(descriptor)
        files.rename(new, place)
        files.sync_directory(place.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            files.unlink(new)
        raise store_error("writing the pointer", path, error) from error


def _read_pointer(path: str) -> Mapping[str, Any]:
    """Return what the pointer at a path says; {} where there is none."""
    try:
        with open(path, "rb") as file:
            facts = json.loads(file.read(_POINTER_NBYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) and "tensordb" in facts else {}
