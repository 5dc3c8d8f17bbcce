"""What does each tier of the cache cost a record that is read again, and when does the cache win nothing?

Run `python benchmarks/caching.py`. Records are read by id with and without a cache in turns, beside the least that any
of them could take: a copy of the tensor. Times are of the processor: what is in memory waits for nothing. A record that
was inserted by itself lies in the catalog's row while it is small; one of a page, or a large one, in a mapped file. The
compiled loops take over from NumPy's after some ten thousand reads. With `--size tiny` it only checks that every way
returns the same bytes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measure import same_bytes, timed
from report import format_number, format_table, machine

from tensordb import CacheConfig, TensorStorage
from tensordb.encoding import kernels

CACHES = {
    "first tier (decoded)": CacheConfig(promote_after=1),
    "second tier (encoded)": CacheConfig(decoded_bytes=0, promote_after=1),
    "third tier (mapped)": CacheConfig(decoded_bytes=0, encoded_bytes=0),
    "no cache": None,
}
SMALL, LARGE = 1536, 1 << 16
PAGE = 64
BATCH = 20
"""Reads that are timed together, as one takes little more than a look at the clock."""


def main() -> None:
    """Read single records again and again, then a skewed and an even choice of many."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=("tiny", "full"), default="full")
    options = parser.parse_args()
    full = options.size == "full"
    print(f"machine: {', '.join(f'{name} {value}' for name, value in machine().items())}\n")
    with tempfile.TemporaryDirectory(prefix="tensordb-benchmark-") as folder:
        _single(Path(folder), 100 if full else 3)
        _many(Path(folder), *((20_000, 1_500) if full else (200, 100)))
    if not full:
        print("tiny: every way returned the same bytes; the figures above mean nothing")


def _single(folder: Path, rounds: int) -> None:
    lines = [["one record again and again, µs", "a copy of it", *CACHES]]
    stores = {name: TensorStorage(folder / "single", cache=config) for name, config in CACHES.items()}
    first = next(iter(stores.values()))
    first.create_dataset("data")
    values = torch.randn(PAGE, LARGE, generator=torch.Generator().manual_seed(0))
    small, large = values[:, :SMALL].contiguous(), values[0]
    paged = first.insert_many("data", small)
    alone = [first.insert("data", each * 2, {"label": 3}) for each in small]
    key = first.insert("data", large, {"label": 3})
    few = max(3, rounds // 10)
    lines.append(["6 KB", *_times(stores, alone[0], small[0] * 2, rounds)])
    lines.append(["6 KB, in a page", *_times(stores, paged[7], small[7], rounds)])
    lines.append([f"6 KB, {PAGE} together", *_times_together(stores, alone, small * 2, few)])
    lines.append([f"6 KB, {PAGE} of a page", *_times_together(stores, paged, small, few)])
    lines.append(["256 KB", *_times(stores, key, large, few)])
    if kernels.load():
        lines.append(["6 KB, compiled loops", *_times(stores, alone[0], small[0] * 2, rounds)])
        lines.append(["6 KB, in a page, compiled loops", *_times(stores, paged[7], small[7], rounds)])
    for db in stores.values():
        db.close()
    print(f"{format_table(lines)}\n")


def _times(stores: Mapping[str, TensorStorage], key: str, tensor: torch.Tensor, rounds: int) -> list[str]:
    """Return what a copy takes, and a read from each store, once every tier has the record."""
    for db in stores.values():
        for _ in range(24):  # so that each tier has it, and the catalog its rows in memory
            assert same_bytes(db.get_tensor_by_id("data", key).tensor, tensor)
    actions = {"copy": partial(_copy, tensor)}
    actions |= {name: partial(_read, db, key) for name, db in stores.items()}
    return [format_number(each / BATCH) for each in _medians(actions, rounds)]


def _times_together(
    stores: Mapping[str, TensorStorage], keys: list[str], tensors: torch.Tensor, rounds: int
) -> list[str]:
    """Return what one of many takes that are read in one call."""
    for db in stores.values():
        for _ in range(12):
            found = db.get_many("data", keys)
            assert same_bytes(torch.stack([each.tensor for each in found]), tensors)
    actions: dict[str, Callable[[int], object]] = {"copy": lambda _: [each.clone() for each in tensors]}
    actions |= {name: partial(_read_many, db, keys) for name, db in stores.items()}
    return [format_number(each / len(keys)) for each in _medians(actions, rounds)]


def _medians(actions: Mapping[str, Callable[[int], object]], rounds: int) -> list[float]:
    """Return the median microseconds of processor time that each action takes, all of them taking turns."""
    rows = [[timed(partial(each, turn), time.process_time) for each in actions.values()] for turn in range(rounds)]
    return [statistics.median(column) * 1e6 for column in zip(*rows, strict=True)]


def _copy(tensor: torch.Tensor, _: int) -> None:
    for _ in range(BATCH):
        tensor.clone()


def _read(db: TensorStorage, key: str, _: int) -> None:
    for _ in range(BATCH):
        db.get_tensor_by_id("data", key)


def _read_many(db: TensorStorage, keys: list[str], _: int) -> None:
    db.get_many("data", keys)


def _many(folder: Path, rows: int, reads: int) -> None:
    """Choose records of 1.5 KB from pages: nine in ten of a hundredth of them, or all alike."""
    config = CacheConfig(decoded_bytes=8 << 20, encoded_bytes=16 << 20)
    random = np.random.default_rng(0)
    lines = [["many records of 1.5 KB, µs each", "with a cache", "no cache", "decoded", "encoded", "mapped", "missed"]]
    with TensorStorage(folder / "many", cache=config) as cached, TensorStorage(folder / "many") as plain:
        plain.create_dataset("data")
        keys = plain.insert_many("data", torch.randn(rows, 384))
        for label, hot in (("90 % of 1 % of them", 0.9), ("all alike", 0.0)):
            few = random.random(reads) < hot
            chosen = np.where(few, random.integers(0, max(1, rows // 100), reads), random.integers(0, rows, reads))
            wanted = [keys[number] for number in chosen.tolist()]
            for db in (cached, plain):
                _choose(db, wanted, 0)
            cached.cache.clear()
            actions = {"cached": partial(_choose, cached, wanted), "plain": partial(_choose, plain, wanted)}
            times = _medians(actions, 3)
            stats = cached.cache.stats()
            counts = (stats.decoded_hits, stats.encoded_hits, stats.mapped_hits, stats.misses)
            shares = [f"{count / sum(counts):.0%}" for count in counts]
            lines.append([label, *(format_number(each / reads) for each in times), *shares])
    print(f"{format_table(lines)}\n")


def _choose(db: TensorStorage, wanted: list[str], _: int) -> None:
    for key in wanted:
        db.get_tensor_by_id("data", key)


if __name__ == "__main__":
    main()
