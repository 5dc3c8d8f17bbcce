"""Commands that change checkpoints: tag, untag, fork, rm, prune, import; and export. Each returns True when done."""

from __future__ import annotations

import argparse
from pathlib import Path

from tensordb.checkpoints.checkpoint import Checkpoint
from tensordb.checkpoints.retention import PruneReport
from tensordb.cli.checkpoints import checkpoint_table, chosen, in_words, is_run, plain
from tensordb.cli.output import printable, size, to_json
from tensordb.cli.overview import open_to_read
from tensordb.errors import InvalidInputError
from tensordb.storage import TensorStorage


def open_to_write(options: argparse.Namespace) -> TensorStorage:
    """Open the database of a command for changes; it must exist already."""
    open_to_read(options).close()  # which says that there is none, where writing would create it
    return TensorStorage(options.path, busy_timeout=options.busy_timeout)


def tag(options: argparse.Namespace) -> bool:
    """Give a checkpoint a name."""
    with open_to_write(options) as db:
        found = chosen(db, options.checkpoint, options)
        found = db.checkpoints.tag(found, options.tag, force=options.force)
    return _done(options, found, f"tagged {in_words(found)} as {printable(options.tag)}")


def untag(options: argparse.Namespace) -> bool:
    """Delete a tag."""
    with open_to_write(options) as db:
        db.checkpoints.untag(options.run, options.tag)
    said = {"run": options.run, "tag": options.tag}
    print(to_json(said) if options.json else f"{printable(options.run)} has no tag {printable(options.tag)} any more")
    return True


def fork(options: argparse.Namespace) -> bool:
    """Begin a run with a checkpoint of another."""
    with open_to_write(options) as db:
        source = chosen(db, options.checkpoint, options)
        found = db.checkpoints.fork(source, None, options.new_run)
    return _done(options, found, f"{printable(found.run)} begins with {in_words(source)}")


def rm(options: argparse.Namespace) -> bool:
    """Delete a checkpoint, or a run."""
    with open_to_write(options) as db:
        if options.all:
            count = db.checkpoints.delete_run(options.checkpoint)
            said = {"run": options.checkpoint, "checkpoints": count}
            text = f"deleted run {printable(options.checkpoint)} with {count:,} checkpoints"
            print(to_json(said) if options.json else text)
            return True
        if is_run(db, options.checkpoint):
            raise InvalidInputError(
                f"{options.checkpoint!r} is a run; give {options.checkpoint}@latest for its newest checkpoint, "
                "or --all to delete the run"
            )
        found = db.checkpoints.delete(chosen(db, options.checkpoint, options))
    return _done(options, found, f"deleted {in_words(found)}")


def prune(options: argparse.Namespace) -> bool:
    """Delete what nothing asks to keep, or say what that is."""
    with open_to_read(options) if options.dry_run else open_to_write(options) as db:
        report = db.checkpoints.prune(
            options.run,
            keep_last=options.keep_last,
            keep_best=options.keep_best,
            metric=options.metric,
            mode=options.mode,
            keep_every=options.keep_every,
            keep_within=options.keep_within,
            dry_run=options.dry_run,
        )
    print(to_json(_plain_report(report)) if options.json else _reported(report))
    return True


def export(options: argparse.Namespace) -> bool:
    """Write a checkpoint to safetensors files."""
    from tensordb.integrations.safetensors import export_safetensors

    with open_to_read(options) as db:
        found = chosen(db, options.checkpoint, options)
        files = export_safetensors(
            db, found, options.target, max_shard_size=options.max_shard_size, overwrite=options.overwrite
        )
    said = [{"file": str(each), "nbytes": each.stat().st_size} for each in files]
    lines = [f"{printable(str(each))}  {size(each.stat().st_size)}" for each in files]
    print(to_json(said) if options.json else "\n".join(lines))
    return True


def import_(options: argparse.Namespace) -> bool:
    """Save files of safetensors or torch as a checkpoint."""
    from tensordb.integrations.safetensors import import_safetensors
    from tensordb.integrations.torch_files import import_torch

    source = Path(options.source)
    if not source.exists():
        raise InvalidInputError(f"there is no file or folder {options.source!r}")
    read = import_safetensors if source.is_dir() or source.suffix == ".safetensors" else import_torch
    with TensorStorage(options.path, busy_timeout=options.busy_timeout) as db:
        found = read(db, source, options.run, step=options.step)
    sizes = f"{size(found.nbytes)} raw, {size(found.added_nbytes)} added"
    return _done(options, found, f"saved {in_words(found)}: {found.tensors:,} tensors, {sizes}")


def _done(options: argparse.Namespace, found: Checkpoint, text: str) -> bool:
    print(to_json(plain(found)) if options.json else text)
    return True


def _plain_report(report: PruneReport) -> dict[str, object]:
    return {
        "dry_run": report.dry_run,
        "removed": [plain(each) for each in report.removed],
        "kept": [plain(each) for each in report.kept],
        "nbytes_freed": report.nbytes_freed,
    }


def _reported(report: PruneReport) -> str:
    verb = "would be deleted" if report.dry_run else "deleted"
    freed = f"{len(report.removed):,} checkpoints {verb}, {len(report.kept):,} kept, {size(report.nbytes_freed)} freed"
    return "\n".join([checkpoint_table(report.removed), freed] if report.removed else [freed])
