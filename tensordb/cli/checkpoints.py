"""Commands that look at checkpoints: ls, show, diff, verify. Each returns whether nothing is wrong."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from tensordb.checkpoints.checkpoint import Checkpoint
from tensordb.checkpoints.diff import CheckpointDiff, cells_of
from tensordb.cli.output import fields, printable, size, table, to_json
from tensordb.cli.overview import error_columns, open_to_read, show_verified
from tensordb.errors import InvalidInputError
from tensordb.model import MeasuredError
from tensordb.storage import TensorStorage

_STEP_DIGITS = 19


def chosen(db: TensorStorage, text: str, options: argparse.Namespace) -> Checkpoint:
    """Return the checkpoint that a command line names: RUN, RUN@STEP, RUN@TAG, RUN@latest, RUN@best, or an id."""
    run, at, which = text.rpartition("@")
    if not at or text in db.checkpoints.runs():
        return db.checkpoints.get(text)
    if which.isascii() and which.isdigit() and len(which) < _STEP_DIGITS:
        return db.checkpoints.get(run, step=int(which))
    if which != "best":
        return db.checkpoints.get(run, which=which)
    return db.checkpoints.get(run, which="best", metric=options.metric, mode=options.mode)


def ls(options: argparse.Namespace) -> bool:
    """List checkpoints, oldest first."""
    if options.n is not None and options.n < 1:
        raise InvalidInputError(f"-n is {options.n}; give a number from 1")
    with open_to_read(options) as db:
        found = db.checkpoints.list(options.run)[-options.n if options.n else None :]
    if options.json:
        print(to_json([plain(each) for each in found]))
    else:
        print(checkpoint_table(found) if found else f"no checkpoints in {printable(options.path)}")
    return True


def show(options: argparse.Namespace) -> bool:
    """Describe one checkpoint and its tensors."""
    with open_to_read(options) as db:
        found = chosen(db, options.checkpoint, options)
        tensors = db.sql(
            "SELECT name, dtype, shape, nbytes, stored_nbytes, compression, quantization, relative_l2, max_abs, norm, "
            "deltas, content_id FROM history.tensors WHERE checkpoint_id = ? ORDER BY position",
            [found.id],
        ).to_pylist()
    if options.json:
        print(to_json({**plain(found), "tensors": tensors}))
    else:
        print(_described(found, tensors))
    return True


def diff(options: argparse.Namespace) -> bool:
    """Compare two checkpoints; differences are nothing wrong."""
    with open_to_read(options) as db:
        a, b = chosen(db, options.a, options), chosen(db, options.b, options)
        found = db.checkpoints.diff(a, b, keys=options.keys, values=not options.no_values)
    if options.json:
        facts = {"counts": found.counts, "stored_nbytes": found.stored_nbytes, "shared_nbytes": found.shared_nbytes}
        rows = [row.to_dict() for row in found.rows]
        print(to_json({"a": plain(a), "b": plain(b), **facts, "tensors": rows}))
    else:
        print(_compared(found, everything=options.all))
    return True


def verify(options: argparse.Namespace) -> bool:
    """Read checkpoints back; False when something is damaged."""
    with open_to_read(options) as db:
        report = db.maintenance.verify_checkpoints(options.run)
    return show_verified(report, as_json=options.json)


def plain(found: Checkpoint) -> dict[str, Any]:
    """Return a checkpoint as plain values."""
    return asdict(found)


def checkpoint_table(found: list[Checkpoint] | tuple[Checkpoint, ...]) -> str:
    """Return checkpoints as a table for people."""
    rows = [
        [
            each.run,
            each.step,
            each.created_at,
            fields(each.metrics),
            " ".join(map(printable, each.tags)),
            size(each.nbytes),
            size(each.added_nbytes),
            each.id,
        ]
        for each in found
    ]
    return table(["run", "step", "saved (UTC)", "metrics", "tags", "raw", "added", "checkpoint"], rows)


def in_words(found: Checkpoint) -> str:
    """Return run, step and id of a checkpoint as one line."""
    which = "a checkpoint" if found.step is None else f"step {found.step}"
    return f"{which} of {printable(found.run)} ({found.id})"


def is_run(db: TensorStorage, text: str) -> bool:
    """Tell whether a text is the name of a run."""
    return text in db.checkpoints.runs()


def _described(found: Checkpoint, tensors: list[dict[str, Any]]) -> str:
    lines = [
        f"checkpoint  {found.id}",
        f"run         {printable(found.run)}",
        f"step        {printable(found.step)}",
        f"epoch       {printable(found.epoch)}",
        f"saved       {printable(found.created_at)} UTC",
        f"parent      {printable(found.parent_id)}",
        f"tags        {' '.join(map(printable, found.tags)) or '-'}",
        f"metrics     {fields(found.metrics) or '-'}",
        f"metadata    {fields(found.metadata) or '-'}",
        f"size        {size(found.nbytes)} raw, {size(found.stored_nbytes)} stored, {size(found.added_nbytes)} added",
    ]
    rows = [_tensor_row(each) for each in tensors]
    head = ["tensor", "dtype", "shape", "raw", "stored", "compression", "quantization", "error", "SNR", "norm"]
    return "\n".join([*lines, "", table(head, rows)] if rows else lines)


def _tensor_row(tensor: dict[str, Any]) -> list[Any]:
    return [
        tensor["name"],
        tensor["dtype"],
        tensor["shape"],
        size(tensor["nbytes"]),
        size(tensor["stored_nbytes"]),
        tensor["compression"],
        tensor["quantization"],
        *error_columns(MeasuredError(tensor["relative_l2"], tensor["max_abs"])),
        tensor["norm"],
    ]


def _compared(found: CheckpointDiff, *, everything: bool) -> str:
    counts = ", ".join(f"{count:,} {change}" for change, count in found.counts.items()) or "no tensors"
    lines = [
        f"a  {in_words(found.a)}",
        f"b  {in_words(found.b)}",
        f"{counts}; {size(found.shared_nbytes)} of {size(found.stored_nbytes)} stored bytes shared",
    ]
    rows = [
        [*cells_of(row)[:-1], size(row.shared_nbytes)]
        for row in found.worst_first
        if everything or row.change != "equal"
    ]
    head = ["tensor", "change", "relative", "cosine", "max abs", "not finite", "shared"]
    return "\n".join([*lines, table(head, rows)] if rows else lines)
