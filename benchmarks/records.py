"""How fast does tensordb store and find records, next to Lance, SQLite, and a folder of safetensors files?

Run `python benchmarks/records.py`; README.md beside this file explains the terms, the output and the options. With
`--size tiny` it only checks that every competitor returns the bytes it was given, in seconds.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from arena import FULL, TINY, Arena, Sizes
from cases import CASES
from data import load_weights
from limits import Limit, measure_limits
from peers import STORES, Store, installed_stores
from report import Row, format_rows, format_table, machine
from targets import format_targets, judge


def main() -> None:
    """Measure, print, and optionally record."""
    options = _options()
    sizes = FULL if options.size == "full" else TINY
    weights = load_weights()
    competitors = [store for store in installed_stores() if store.name in options.stores]
    _introduce(sizes, weights.origin, competitors)
    # A terminated run leaves the same way as an interrupted one, which removes its folders.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="tensordb-benchmark-", dir=options.folder) as name:
        arena = Arena(Path(name), sizes, weights, competitors)
        try:
            rows = [row for case in options.only for row in _measured(case, arena)]
            limits = list(measure_limits(Path(name), arena.matrix, sizes.rounds, sizes.filter_rows))
        finally:
            arena.close()
        # Before the folders are removed, which takes a while.
        _print(rows, limits, [store.name for store in competitors], options.size)
        if options.json:
            options.json.write_text(json.dumps(_record(options.size, weights.origin, rows, limits), indent=2) + "\n")


def _introduce(sizes: Sizes, origin: str, competitors: list[type[Store]]) -> None:
    print(f"data: {origin}")
    print(f"machine: {', '.join(f'{name} {value}' for name, value in machine().items())}")
    print(
        f"rows: {sizes.rows:,} of 384 float32; large tensors: {sizes.large_count:,} of {sizes.large_elements:,} float32"
    )
    for store in STORES:
        print(
            f"{store.name}: {store.durability if store in competitors else 'LEFT OUT (not installed or not asked for)'}"
        )


def _measured(case: str, arena: Arena) -> list[Row]:
    start = time.perf_counter()
    rows = list(CASES[case](arena))
    print(f"done: {case} in {time.perf_counter() - start:.1f} s", flush=True)
    return rows


def _print(rows: list[Row], limits: list[Limit], competitors: list[str], size: str) -> None:
    extra = [name for name in dict.fromkeys(name for row in rows for name in row.values) if name not in competitors]
    print(f"\n{format_rows(rows, competitors + extra)}\n")
    lines = [[limit.label, *str(limit).removeprefix(f"{limit.label}: ").partition(" ")[::2]] for limit in limits]
    print(f"{format_table([['limit of this machine', 'value', 'unit'], *lines])}\n")
    if size == "full":
        print(format_targets({row.key: row for row in rows}, {limit.key: limit for limit in limits}))
    else:
        print("tiny: every competitor returned the bytes it was given; the figures above mean nothing")


def _record(size: str, origin: str, rows: list[Row], limits: list[Limit]) -> dict[str, object]:
    return {
        "size": size,
        "data": origin,
        "machine": machine(),
        "rows": [row.to_dict() for row in rows],
        "limits": {limit.key: {"label": limit.label, "value": limit.value, "unit": limit.unit} for limit in limits},
        "targets": judge({row.key: row for row in rows}) if size == "full" else [],
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=("tiny", "full"), default="full")
    names = [store.name for store in STORES]
    parser.add_argument("--only", type=_names(CASES), default=list(CASES), metavar="NAME,...", help=", ".join(CASES))
    parser.add_argument("--stores", type=_names(names), default=names, metavar="NAME,...", help=", ".join(names))
    parser.add_argument("--json", type=Path, metavar="FILE", help="record the result")
    parser.add_argument("--folder", type=Path, help="where to put the stores: a real disk, or durability costs nothing")
    return parser.parse_args()


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        return names

    return parse


if __name__ == "__main__":
    main()
