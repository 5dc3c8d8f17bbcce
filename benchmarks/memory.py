"""How much memory does one bulk insert need?

Runs in a fresh process: `python benchmarks/memory.py STORE FOLDER ROWS` prints, as JSON, the resident bytes before the
rows existed, the peak of the insert, and the rows' own size. The peak counts the rows themselves.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from data import embedding_rows, load_weights, metadata
from measure import memory_now, peak_memory
from peers import STORES


def peak_beyond_rows(store: str, folder: Path, rows: int) -> float:
    """Peak memory of a fresh process that inserts `rows` rows, beyond its baseline and the rows, in MB."""
    command = [sys.executable, __file__, store, str(folder), str(rows)]
    report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return float(report["peak"] - report["baseline"] - report["raw"]) / 1e6


def main(name: str, folder: str, count: str) -> None:
    """Insert once, and print what it took."""
    store = next(store for store in STORES if store.name == name)(Path(folder))
    fields = metadata(0, int(count))
    baseline = memory_now()
    rows = embedding_rows(load_weights(), int(count))
    store.insert_many(rows, fields)
    peak = peak_memory()
    store.close()
    print(json.dumps({"baseline": baseline, "peak": peak, "raw": rows.nbytes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
