"""The command `repair`; it returns whether nothing was damaged."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from tensordb.cli.output import printable, to_json
from tensordb.cli.overview import verdict
from tensordb.errors import InvalidInputError, NotFoundError
from tensordb.maintenance import RepairReport
from tensordb.salvage import salvage
from tensordb.storage import TensorStorage


def repair(options: argparse.Namespace) -> bool:
    """Remove what is damaged, or salvage the rest into another folder."""
    report = _into_target(options) if options.target is not None else _in_place(options)
    if options.json:
        print(to_json({"ok": report.ok, **asdict(report)}))
    else:
        print("\n".join([*map(printable, _lines(report)), _summary(report)]))
    return report.ok


def _into_target(options: argparse.Namespace) -> RepairReport:
    if options.dry_run:
        raise InvalidInputError("--dry-run has nothing to say about a TARGET; leave one of them out")
    return salvage(Path(options.path), Path(options.target), busy_timeout=options.busy_timeout)


def _in_place(options: argparse.Namespace) -> RepairReport:
    if not (Path(options.path) / "catalog.duckdb").exists():
        raise NotFoundError(f"there is no database in {options.path!r}")
    with TensorStorage(options.path, busy_timeout=options.busy_timeout, read_only=options.dry_run) as db:
        return db.maintenance.repair(drop_checkpoints=options.drop_checkpoints, dry_run=options.dry_run)


def _lines(report: RepairReport) -> list[str]:
    done = "damaged" if report.dry_run else "removed"
    gone = set(() if report.dry_run else report.removed_checkpoints)
    return [
        *(f"{done}: {each.dataset} {each.record_id}: {each.reason}" for each in report.removed_records),
        *(f"{done}: weight {each.hash}: {each.reason}" for each in report.removed_weights),
        *(
            f"{'removed' if each.checkpoint_id in gone else 'damaged'}: checkpoint {each.checkpoint_id} "
            f"(run {each.run}, step {each.step}) {each.name or 'state'}: {each.reason}"
            for each in report.damaged_tensors
        ),
        *(f"lost: {each}" for each in report.not_salvaged),
        *(f"mended: catalog: {each}" for each in report.mended_catalog),
        *(f"damaged, kept: catalog: {each}" for each in report.damaged_catalog),
        *(f"{_fate(report, each)}: {each}" for each in report.damaged_segments),
        *([f"mending stopped: {report.mending_stopped}"] if report.mending_stopped else []),
        *(f"unreadable here, kept: {each.name}: {each.reason}" for each in report.unreadable),
    ]


def _fate(report: RepairReport, sentence: str) -> str:
    return "mended" if sentence in report.mended_segments else "damaged" if report.dry_run else "damaged, kept"


def _summary(report: RepairReport) -> str:
    damaged = len(report.removed_records) + len(report.removed_weights) + len(report.damaged_tensors)
    damaged += len(report.not_salvaged) + len(report.damaged_catalog) + len(report.damaged_segments)
    damaged += len(report.mended_catalog)
    looked = f"{report.records:,} records, {report.checkpoints:,} checkpoints and {report.weights:,} weights looked at"
    return f"{looked}: {verdict(damaged, len(report.unreadable))}"
