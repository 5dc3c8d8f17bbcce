"""Runs a crowd of processes on one folder, under a watchdog, and counts what is there in the end."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tensordb import TensorStorage

from .nursery import Program
from .programs import line, made, start, stray_segments

WRITERS = READERS = 4
WATCHDOG = 120
"""Seconds beyond its own that a process may take: to start, and to end what it began on a busy machine."""
LONGEST_WAIT = 100
"""Seconds that no operation may take, whoever else is at work."""


def start_member(folder: Path, number: int, work: str, seconds: float, seed: int) -> Program:
    """Start one process of the crowd."""
    return start(_MEMBER, folder, number, work, seconds, seed)


_MEMBER = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # it forks while it has threads
from tests.faults.crowd_member import main
main()
"""


def crowd(
    folder: Path, seconds: float, *, writers: int = WRITERS, readers: int = READERS, seed: int = 0
) -> dict[str, float]:
    """Let writers and readers loose for so long; check that nothing is lost, doubled or stuck, and return figures."""
    with TensorStorage(folder) as db:
        db.create_dataset("d", {"metadata": {"seed": "int", "size": "int"}})
    works = ["write"] * writers + ["read"] * readers
    members = [start_member(folder, number, work, seconds, seed) for number, work in enumerate(works)]
    try:
        for member in members:
            assert line(member) == "ready"
        with ThreadPoolExecutor(len(members)) as pool:  # each is waited for at once, so that no pipe fills up
            told = list(pool.map(lambda member: member.communicate("\n", timeout=seconds + WATCHDOG), members))
    finally:
        for member in members:
            member.kill()
            member.communicate()
    for member, (_, complaints) in zip(members, told, strict=True):
        assert (member.returncode, complaints) == (0, ""), complaints
    reports = [json.loads(said) for said, _ in told]
    _assert_all_is_there(folder, reports[:writers])
    return _figures(reports, writers)


def _assert_all_is_there(folder: Path, written: list[dict[str, Any]]) -> None:
    with TensorStorage(folder) as db:
        kept = {key: row for report in written for key, row in report["kept"].items()}
        assert {record.id: [record.metadata["seed"], record.metadata["size"]] for record in db.scan("d")} == kept
        assert db.count("d") == len(kept) == sum(len(report["kept"]) for report in written)
        assert all(record.tensor.equal(made(*kept[record.id])) for record in db.scan("d"))
        steps = {f"run {number}": report["steps"] for number, report in enumerate(written) if report["steps"]}
        assert {run: [each.step for each in db.checkpoints.list(run)] for run in db.checkpoints.runs()} == steps
        assert {info.hash for info in db.weights.list_weights()} == {h for report in written for h in report["weights"]}
        assert db.verify().ok
        db.maintenance.gc()
        assert stray_segments(db) == []


def _figures(reports: list[dict[str, Any]], writers: int) -> dict[str, float]:
    for report in reports:
        assert report["longest"] < LONGEST_WAIT, f"one operation took {report['longest']:.1f} s"
        early, late = report["memory"]
        assert late < early * 1.5 + (64 << 20), f"memory grew from {early >> 20} to {late >> 20} MB"
        early, late = report["descriptors"]
        assert late <= early + 20, f"open files grew from {early} to {late}"
    return {
        "writes": sum(report["operations"] for report in reports[:writers]),
        "reads": sum(report["operations"] for report in reports[writers:]),
        "forks": sum(key.startswith("child") for report in reports for key in report["kept"]),
        "fewest operations of one": min(report["operations"] for report in reports),
        "longest wait (s)": round(max(report["longest"] for report in reports), 2),
        "most memory of one (MB)": max(report["memory"][1] for report in reports) >> 20,
        "most files of one": max(report["descriptors"][1] for report in reports),
    }
