"""What does an index on a metadata field win among a million records, and what do conditions on statistics cost?

Run `python benchmarks/lookups.py`. Every condition is answered with the index and without it in turns; both must give
the same records. Times are of the processor, of which a query takes one. With `--size tiny` only the answers are
checked, in seconds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from measure import timed
from report import format_number, format_table, machine

from tensordb import TensorStorage

CONDITIONS = {
    "text, 10 of them": "metadata.tag = 'tag 777'",
    "text, none": "metadata.tag = 'no such tag'",
    "text, and a range of another field": "metadata.tag = 'tag 777' AND metadata.loss > 0",
    "text, every tenth": "metadata.split = 'part 3'",
    "range of text": "metadata.tag BETWEEN 'tag 777' AND 'tag 7770'",
    "whole number (no index)": "metadata.label = 777",
    "range of a whole number (no index)": "metadata.label BETWEEN 770 AND 772",
}
STATISTICS = {
    "norm": "stats.norm > 4.7",
    "non-finite values": "stats.non_finite > 0",
    "norm, of one tag": "stats.norm > 1 AND metadata.label = 777",
}


def main() -> None:
    """Fill two datasets alike, give one of them indexes, and ask both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=("tiny", "full"), default="full")
    options = parser.parse_args()
    rows, rounds = (1_000_000, 15) if options.size == "full" else (8_000, 3)
    print(f"machine: {', '.join(f'{name} {value}' for name, value in machine().items())}")
    with tempfile.TemporaryDirectory(prefix="tensordb-benchmark-") as folder, TensorStorage(Path(folder) / "db") as db:
        for name in ("plain", "indexed"):
            db.create_dataset(name)
            _fill(db, name, rows)
        for field in ("tag", "split"):
            db.create_index("indexed", field)
        print(f"rows: {rows:,}\n")
        _print("condition", CONDITIONS, db, ("indexed", "plain"), rounds)
        _print("condition on statistics", STATISTICS, db, ("plain",), rounds)
    if options.size == "tiny":
        print("tiny: the answers agree; the figures above mean nothing")


def _fill(db: TensorStorage, name: str, rows: int) -> None:
    random = np.random.default_rng(0)
    part = min(rows, 100_000)
    for start in range(0, rows, part):
        labels = random.permutation(np.arange(start, start + part)) % (rows // 10)
        documents = pa.table(
            {
                "tag": pa.array([f"tag {label}" for label in labels]),
                "label": pa.array(labels),
                "split": pa.array([f"part {label % 10}" for label in labels]),
                "loss": pa.array(random.standard_normal(part)),
            }
        )
        db.insert_many(name, torch.from_numpy(random.standard_normal((part, 4), np.float32)), documents)


def _print(title: str, conditions: dict[str, str], db: TensorStorage, names: tuple[str, ...], rounds: int) -> None:
    lines = [[title, "records", *(f"{name}, ms" for name in names), *(["won"] if len(names) > 1 else [])]]
    for label, where in conditions.items():
        counts = {db.count(name, where) for name in names}
        assert len(counts) == 1, f"{where}: {counts}"
        samples = [[timed(partial(db.count, name, where), time.process_time) for name in names] for _ in range(rounds)]
        times = [statistics.median(column) * 1e3 for column in zip(*samples[1:], strict=True)]
        won = [f"{format_number(times[1] / times[0])} x"] if len(names) > 1 else []
        lines.append([label, f"{counts.pop():,}", *map(format_number, times), *won])
    print(f"{format_table(lines)}\n")


if __name__ == "__main__":
    main()
