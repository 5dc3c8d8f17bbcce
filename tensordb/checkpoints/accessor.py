"""The verbs behind ``db.checkpoints``. Every body is a few lines; behaviour lives beside it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch

from tensordb import tensors
from tensordb.checkpoints import history, randomness
from tensordb.checkpoints.background import Background, PendingCheckpoint
from tensordb.checkpoints.checkpoint import Checkpoint, CheckpointList, from_row
from tensordb.checkpoints.comparing import compare as compare_checkpoints
from tensordb.checkpoints.diff import CheckpointDiff
from tensordb.checkpoints.gathering import on_first_rank
from tensordb.checkpoints.history import Mode
from tensordb.checkpoints.loading import open_checkpoint
from tensordb.checkpoints.placing import device_of
from tensordb.checkpoints.requests import Facts, Request
from tensordb.checkpoints.restoring import (
    LoadReport,
    check_strict,
    compare,
    load_states,
    targets_of,
    warn_of_left_out,
)
from tensordb.checkpoints.retention import PruneReport, Retention, prune
from tensordb.checkpoints.roles import RoleConfigs, state_tree
from tensordb.checkpoints.saving import save
from tensordb.checkpoints.selecting import Selection, selection
from tensordb.checkpoints.sharded import ShardedCheckpoints
from tensordb.checkpoints.tree import Flattened, Leaf, flatten
from tensordb.display import html_table
from tensordb.encoding.presets import CompressionConfig
from tensordb.engine import Database
from tensordb.errors import CheckpointNotFoundError, ConflictError, InvalidInputError, ReadOnlyError
from tensordb.overloading import overload

Names = list[str]  # `list` is a method below
Side = str | Checkpoint | PendingCheckpoint | tuple[str, int | str | None]
MapLocation = torch.device | str | Mapping[str, Any] | Callable[[Any, str], Any] | None
Named = str | Checkpoint | PendingCheckpoint
Preset = str | CompressionConfig | Mapping[str, str | CompressionConfig] | None


class Checkpoints:
    """Checkpoints of training runs: saving, loading, history, retention.

    A run is a name for checkpoints that follow each other; saving makes it. Tensors that are equal are stored once over
    all runs, and those that changed little as differences from the checkpoint before.

    In SQL the history is ``history.runs``, ``history.checkpoints`` and ``history.tensors``, whose columns
    `TensorStorage.sql` lists:

    >>> from tensordb import TensorStorage
    >>> with TensorStorage(None) as db:
    ...     for step in range(3):
    ...         _ = db.checkpoints.save("a", {"w": torch.full((2,), step / 2)}, step=step, rng=False)
    ...     db.sql("SELECT step, round(norm, 3) AS n FROM history.tensors WHERE norm > 1").to_pylist()
    [{'step': 2, 'n': 1.414}]
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._background = Background()

    @overload
    def save(
        self,
        run: str,
        model: Any = None,
        optimizer: Any = None,
        *,
        scheduler: Any = None,
        scaler: Any = None,
        state: Any = None,
        step: int | None = None,
        epoch: float | None = None,
        metrics: Mapping[str, float] | None = None,
        metadata: Mapping[str, Any] | None = None,
        preset: Preset = None,
        rng: bool = True,
        async_: Literal[False] = False,
    ) -> Checkpoint: ...
    @overload
    def save(
        self,
        run: str,
        model: Any = None,
        optimizer: Any = None,
        *,
        scheduler: Any = None,
        scaler: Any = None,
        state: Any = None,
        step: int | None = None,
        epoch: float | None = None,
        metrics: Mapping[str, float] | None = None,
        metadata: Mapping[str, Any] | None = None,
        preset: Preset = None,
        rng: bool = True,
        async_: Literal[True],
    ) -> PendingCheckpoint: ...
    def save(
        self,
        run: str,
        model: Any = None,
        optimizer: Any = None,
        *,
        scheduler: Any = None,
        scaler: Any = None,
        state: Any = None,
        step: int | None = None,
        epoch: float | None = None,
        metrics: Mapping[str, float] | None = None,
        metadata: Mapping[str, Any] | None = None,
        preset: Preset = None,
        rng: bool = True,
        async_: bool = False,
    ) -> Checkpoint | PendingCheckpoint:
        """Save the state of this moment.

        Where ranks of a process group share tensors (DTensor, as of FSDP), all of them have to call this: they gather
        each tensor together, the first rank writes, and all return the same checkpoint. Any other state is saved by
        whichever rank calls this, for itself. `tensordb.integrations.dcp` gathers nothing: each rank writes its shards.

        Args:
            run: Name of the run, any text; it is made when it is new.
            model: A module, of which parameters and buffers are saved, or a state dict.
            optimizer: An optimizer, or its state dict; likewise for `scheduler` and `scaler`.
            scheduler: A learning rate scheduler.
            scaler: A gradient scaler.
            state: Any nested state: dicts, lists, tuples, tensors, arrays, numbers, text, bytes, datetimes. What has a
                ``state_dict()`` at its top (samplers, loaders) and generators give theirs.
            step: An int from 0; without it, that of the checkpoint is None when it is resumed. Of several checkpoints
                of one step the newest is loaded.
            epoch: A number from 0.
            metrics: Numbers by name.
            metadata: JSON-like values by name.
            preset: What to encode with: the name of a preset, a config, or those by role, such as
                ``{"model": "lossless", "optimizer": "int8_only"}``. Roles that are not named, or None, follow the
                storage. Rules match a tensor's name within its role, such as ``"layer.0.weight"``.
            rng: Save the states of the generators of Python, NumPy and torch too, always exactly.
            async_: Return as soon as the state is copied; a call that comes before the one before is written waits.

        Returns:
            The checkpoint once it is durable; with `async_` a `PendingCheckpoint` whose ``wait()`` returns it.

        Raises:
            InvalidInputError: Something cannot be stored; the message has its path in the state. Nothing was saved.
            ConflictError: With `async_`, inside a transaction.
            TensorDBError: What went wrong with the save before, if that was with `async_` and nobody waited for it.
        """
        facts = Facts.of(run, step, epoch, metrics, metadata)
        configs = RoleConfigs.of(preset, self._db.config)
        if self._db.read_only:
            raise ReadOnlyError(f"saving {run!r}: the database was opened with read_only=True; open it without")

        def flat() -> Flattened:
            tree = state_tree(model, optimizer=optimizer, scheduler=scheduler, scaler=scaler, state=state, rng=rng)
            return flatten(tree)

        def copied() -> Request:
            flattened = flat()
            if flattened.gathered:
                raise InvalidInputError(
                    "async_=True is not for tensors that ranks share, which all of them gather; save without, or with "
                    "torch.distributed.checkpoint.async_save and tensordb.integrations.dcp"
                )
            leaves = [Leaf(each.name, tensors.owned(each.tensor)) for each in flattened.leaves]
            return Request(facts, leaves, flattened.document, configs)

        if async_:
            if self._db.catalog.in_own_transaction:
                raise ConflictError(
                    f"saving {run!r} with async_=True cannot be a part of a transaction; save without async_ inside it"
                )
            return self._background.start(lambda: partial(save, self._db, copied()))
        self._settle()
        flattened = flat()
        write = partial(save, self._db, Request(facts, flattened.leaves, flattened.document, configs))
        return on_first_rank(write) if flattened.gathered else write()

    @property
    def sharded(self) -> ShardedCheckpoints:
        """What writers and readers of checkpoints are built on that several processes save together."""
        return ShardedCheckpoints(self._db)

    def wait(self) -> None:
        """Wait until what is saved in the background is durable; raise what went wrong with it."""
        self._settle()

    def _settle(self) -> None:
        # What another thread saves meanwhile waits for the end of this thread's transaction, and not the reverse.
        if not self._db.catalog.in_own_transaction:
            self._background.settle()

    def _settled(self, named: Any) -> Any:
        """Return what was named, once nothing is written in the background: a checkpoint for one that was."""
        self._settle()
        if not isinstance(named, PendingCheckpoint):
            return named
        if self._db.catalog.in_own_transaction and not named.done():
            raise ConflictError("the checkpoint is written once this transaction ends; wait for it before, or after")
        return named.wait()

    def load(
        self,
        run_or_id: Named,
        *,
        step: int | None = None,
        which: str = "latest",
        metric: str | None = None,
        mode: Mode = "min",
        into: Any = None,
        keys: str | Sequence[str] | None = None,
        map_location: MapLocation = None,
        strict: bool = True,
        lazy: bool = False,
    ) -> Any:
        """Load a checkpoint, as a dict by role or into modules and optimizers.

        Args:
            run_or_id: A run, a checkpoint id, a `Checkpoint`, or a `PendingCheckpoint`, which is waited for.
            step: The newest checkpoint of this step.
            which: ``"latest"``, ``"best"``, or a tag.
            metric: For ``"best"``; may be left out where the run has only one metric.
            mode: Whether the ``"min"`` or the ``"max"`` of it is best.
            into: A module, an optimizer, a sequence of them, or a mapping such as ``{"model": net, "state": {"sampler":
                sampler}}``: their states are loaded in place. None returns the state.
            keys: Names, or shell-style patterns of names, to load nothing else: ``"model"``,
                ``["model.encoder.*", "optimizer"]``. One that names nothing is an error, but for roles that were not
                saved.
            map_location: Device of the tensors (default: the CPU), in any of the forms that `torch.load` takes; all
                are read into memory of the CPU first.
            strict: Raise when module and checkpoint differ in names, before anything is changed. Without it what fits
                is loaded, and names that have nothing in common are an error all the same.
            lazy: Return `LazyTensor` objects, which read by ``.load()`` or ``[index]``; not with `into`.

        Returns:
            The state, ``{"model": …, "optimizer": …}`` with what was saved; with `into` a `LoadReport`.

        Raises:
            CheckpointNotFoundError: There is no such checkpoint.
            InvalidInputError: It does not fit `into`; nothing was loaded.
            IntegrityError: Stored bytes are damaged; the message names the tensor.
        """
        targets = None if into is None else targets_of(into)
        if targets is not None and lazy:
            raise InvalidInputError("lazy=True returns a state to read later, and into= reads it now; give one of them")
        wanted = selection(keys if keys is not None or targets is None else list(targets))
        tree, row = self._read(run_or_id, step, which, metric, mode, wanted, map_location, lazy)
        if keys is not None and wanted is not None:
            wanted.check()
        if tree is None:
            asked = keys if keys is not None else list(targets or ())
            raise InvalidInputError(f"the checkpoint has nothing named {asked!r}; names begin with a role: 'model.…'")
        if targets is None or wanted is None:
            return tree
        missing, unexpected = compare(tree, targets, wanted)
        if strict:
            check_strict(missing, unexpected)
        load_states(tree, targets)
        return LoadReport(row, missing, unexpected)

    def resume(
        self,
        run: str,
        model: Any = None,
        optimizer: Any = None,
        *,
        scheduler: Any = None,
        scaler: Any = None,
        state: Any = None,
        step: int | None = None,
        which: str = "latest",
        metric: str | None = None,
        mode: Mode = "min",
        rng: bool = True,
        map_location: MapLocation = None,
        strict: bool = True,
    ) -> Checkpoint | None:
        """Put a training back to where a checkpoint was saved, global generators included.

        What was saved and is not given here is left alone, with a warning: a training that goes on without its schedule
        is another one. ``state={}`` says that you read yours by `load`, and ``load(into=…)`` restores parts without a
        word. A plain ``DataLoader`` does not keep its place in an epoch:
        save between epochs, or give a loader that has a state; generators of your own go into `state`.

        Args:
            run: The run.
            model: The module; likewise `optimizer`, `scheduler` and `scaler`.
            optimizer: The optimizer.
            scheduler: The learning rate scheduler.
            scaler: The gradient scaler.
            state: A mapping of what `save` was given as ``state=``: samplers, loaders, generators.
            step: As for `load`; likewise `which`, `metric`, `mode`, `map_location` and `strict`.
            which: Which checkpoint.
            metric: For ``which="best"``.
            mode: For ``which="best"``.
            rng: Restore the generators of Python, NumPy and torch, if they were saved.
            map_location: Device of the tensors that are loaded.
            strict: Raise when names differ.

        Returns:
            The checkpoint, of which ``step`` says where to go on; None when the run has none yet, to begin it.
        """
        given = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "state": state}
        targets = targets_of(given)
        wanted = Selection([*targets, "rng"] if rng else list(targets))
        try:
            tree, row = self._read(run, step, which, metric, mode, wanted, map_location, False)
        except CheckpointNotFoundError:
            if step is None and which == "latest" and metric is None:
                return None
            raise
        tree = tree or {}  # None where nothing of what was given was saved
        missing, unexpected = compare(tree, targets, wanted)
        if strict:
            check_strict(missing, unexpected)
        load_states(tree, targets)
        if rng and "rng" in tree:
            randomness.restore(tree["rng"])
        warn_of_left_out(row, wanted.roles, targets)
        return row

    def get(
        self,
        run_or_id: Named,
        *,
        step: int | None = None,
        which: str = "latest",
        metric: str | None = None,
        mode: Mode = "min",
    ) -> Checkpoint:
        """Return a checkpoint without its tensors; arguments as for `load`."""
        run_or_id = self._settled(run_or_id)
        with self._db.catalog.read() as con:
            return from_row(history.find(con, run_or_id, step=step, which=which, metric=metric, mode=mode))

    def runs(self) -> Names:
        """Return the names of all runs, oldest first."""
        self._settle()
        return history.run_names(self._db)

    def list(self, run: str | None = None) -> CheckpointList:
        """Return the checkpoints of a run, or of all, oldest first."""
        self._settle()
        return history.list_of(self._db, run)

    def best(self, metric: str, run: str | None = None, *, mode: Mode = "min") -> Checkpoint:
        """Return the checkpoint with the smallest (or with ``mode="max"`` largest) metric, of a run or of all."""
        self._settle()
        return history.best(self._db, metric, run, mode)

    def log(self, run_or_id: Named | None = None) -> CheckpointList:
        """Return a run's newest checkpoint, or the one given, and those before it, newest first and over forks.

        Args:
            run_or_id: None for the newest checkpoint of all runs.
        """
        return history.log(self._db, self._settled(run_or_id))

    def diff(self, a: Side, b: Side, *, keys: str | Sequence[str] | None = None, values: bool = True) -> CheckpointDiff:
        """Compare two checkpoints, tensor by tensor.

        Tensors of the same content are equal without reading a byte of them; others are decoded a piece at a time and
        compared in float64.

        Args:
            a: A run (its newest checkpoint), a checkpoint id, a `Checkpoint`, or a pair of a run and a step or tag:
                ``("baseline", 100)``, ``("baseline", "best")``.
            b: What to compare it with.
            keys: Names, or shell-style patterns of names, to compare nothing else, as for `load`.
            values: False for what the catalog knows: equal or not, and the bytes that both share.

        Raises:
            CheckpointNotFoundError: There is no such checkpoint.
            IntegrityError: Stored bytes are damaged; the message names the tensor.
        """
        return compare_checkpoints(self._db, self._settled(a), self._settled(b), keys=keys, values=values)

    def tag(
        self,
        run_or_id: Named,
        tag: str,
        *,
        step: int | None = None,
        which: str = "latest",
        metric: str | None = None,
        mode: Mode = "min",
        force: bool = False,
    ) -> Checkpoint:
        """Give a checkpoint a name within its run, so that `prune` keeps it; `force` moves a name that is taken.

        The other arguments are as for `load`.
        """
        found = self._settled(run_or_id)
        return history.tag(self._db, found, tag, step=step, which=which, metric=metric, mode=mode, force=force)

    def untag(self, run: str, tag: str) -> None:
        """Delete a tag; its checkpoint stays."""
        self._settle()
        history.untag(self._db, run, tag)

    def fork(
        self,
        run_or_id: Named,
        step: int | None,
        new_run: str,
        *,
        which: str = "latest",
        metric: str | None = None,
        mode: Mode = "min",
    ) -> Checkpoint:
        """Begin a new run with a checkpoint of another; no byte is copied, and each may be deleted by itself.

        Args:
            run_or_id: The run, or a checkpoint.
            step: The newest checkpoint of this step; None for the one that `which` names.
            new_run: Name of the new run.
            which: ``"latest"``, ``"best"``, or a tag.
            metric: For ``"best"``, likewise `mode`, as for `load`.
            mode: Whether the smallest or the largest is best.

        Raises:
            AlreadyExistsError: There is a run of the new name.
        """
        found = self._settled(run_or_id)
        return history.fork(self._db, found, new_run, step=step, which=which, metric=metric, mode=mode)

    def delete(
        self,
        run_or_id: Named,
        *,
        step: int | None = None,
        which: str = "latest",
        metric: str | None = None,
        mode: Mode = "min",
    ) -> Checkpoint:
        """Delete one checkpoint with its tags, and return what it was; what others share with it stays readable.

        Arguments are as for `load`.
        """
        found = self._settled(run_or_id)
        return history.delete(self._db, found, step=step, which=which, metric=metric, mode=mode)

    def delete_run(self, run: str) -> int:
        """Delete a run with all its checkpoints and tags, and return how many checkpoints there were."""
        self._settle()
        return history.delete_run(self._db, run)

    def prune(
        self,
        run: str,
        *,
        keep_last: int | None = None,
        keep_best: int | None = None,
        metric: str | None = None,
        mode: Mode = "min",
        keep_every: int | None = None,
        keep_within: dt.timedelta | None = None,
        dry_run: bool = False,
    ) -> PruneReport:
        """Delete the checkpoints of a run that nothing asks to keep; the newest, and those with tags, always stay.

        Args:
            run: The run.
            keep_last: Keep the newest so many.
            keep_best: Keep the best so many by `metric`.
            metric: May be left out where the run has only one.
            mode: Whether the smallest or the largest metric is best.
            keep_every: Keep those whose step is a multiple of it.
            keep_within: Keep those not older than this.
            dry_run: Only say what would be removed.
        """
        self._settle()
        retention = Retention(keep_last, keep_best, metric, mode, keep_every, keep_within)
        return prune(self._db, run, retention, dry_run=dry_run)

    def _repr_html_(self) -> str:
        rows = history.overview(self._db)
        return html_table(["run", "checkpoints", "latest step", "latest (UTC)", "raw bytes", "added bytes"], rows)

    def _read(
        self,
        run_or_id: Any,
        step: int | None,
        which: str,
        metric: str | None,
        mode: Mode,
        wanted: Selection | None,
        map_location: Any,
        lazy: bool,
    ) -> tuple[Any, Checkpoint]:
        device = device_of(map_location)
        run_or_id = self._settled(run_or_id)
        with self._db.catalog.read() as con:
            row = history.find(con, run_or_id, step=step, which=which, metric=metric, mode=mode)
            opened = open_checkpoint(self._db, con, row, wanted)
        return opened.tree(self._db, device=device, lazy=lazy), from_row(row)
