"""How fast does a dataset feed a training loop: shuffled epochs of tensordb, Lance, LitData, datasets and safetensors?

Run `python benchmarks/loading.py`; README.md beside this file explains the terms and the output. Tensors in memory,
indexed batch by batch, are the bound. With `--size tiny` it only checks that every competitor yields each record once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from data import embedding_rows, large_tensors, load_weights
from feeders import FEEDERS, Feeder, TensorDB, installed_feeders
from measure import folder_bytes
from photos import crops
from report import US, Row, format_rows, machine
from torch import Tensor

BATCH = 256
MATERIALS: dict[str, str] = {
    "vectors": "float32 vectors of 384: MiniLM's embedding matrix, tiled with noise",
    "images": "uint8 images of 3 x 96 x 96: crops of photographs",
    "tensors": "float32 tensors of 1 MB: MiniLM's weights",
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much a run does: records of each material, and epochs of each competitor."""

    vectors: int
    images: int
    tensors: int
    epochs: int


TINY = Sizes(3_000, 300, 20, epochs=1)
FULL = Sizes(100_000, 10_000, 1_000, epochs=5)


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch took: seconds, seconds to the first batch, processor seconds, and the records it had."""

    seconds: float
    first: float
    processor: float
    records: int


def main() -> None:
    """Measure and print."""
    options = _options()
    sizes = FULL if options.size == "full" else TINY
    print(f"machine: {', '.join(f'{name} {value}' for name, value in machine().items())}")
    competitors = installed_feeders(options.feeders)
    for each in FEEDERS:
        what = f"shuffles {each.shuffle}" if each in competitors else "LEFT OUT (not installed or not asked for)"
        print(f"{each.name}: {what}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="tensordb-benchmark-", dir=options.folder) as folder:
        for material in options.only:
            rows += _measured(material, sizes, competitors, Path(folder) / material, options)
    print(f"\n{format_rows(rows, [each.name for each in competitors])}\n")
    if options.size == "tiny":
        print("tiny: every competitor yielded each record once; the figures above mean nothing")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "rows": [row.to_dict() for row in rows]}, indent=2))


def _measured(
    material: str, sizes: Sizes, competitors: list[type[Feeder]], folder: Path, options: argparse.Namespace
) -> Iterator[Row]:
    stack = _material(material, options.records or getattr(sizes, material))
    feeders = {}
    for each in competitors:
        feeders[each.name] = each(folder / each.name.replace(" ", "-"))
        feeders[each.name].write(stack)
    print(f"\n{material}: {len(stack):,} {MATERIALS[material]}", flush=True)
    stored = {name: folder_bytes(each.path)[0] / stack.nbytes for name, each in feeders.items() if each.on_disk}
    yield Row(f"{material}_stored", f"{material}: folder / raw", "", "lower", stored)
    for workers in options.workers:
        for cold in (False, True) if options.cold else (False,):
            taken = _epochs(feeders, stack, workers, options.epochs or sizes.epochs, cold)
            what = f"{material}, {workers} workers, {'cold' if cold else 'warm'}"
            yield _row(what, "records/s", "higher", taken, lambda epoch: epoch.records / epoch.seconds)
            yield _row(f"{what}, first batch", "ms", "lower", taken, lambda epoch: epoch.first * 1e3)
            if not workers:
                yield _row(f"{what}, processor", "s", "lower", taken, lambda epoch: epoch.processor)
    ours = feeders.get(US)
    if isinstance(ours, TensorDB):
        yield from _own(material, ours, options.epochs or sizes.epochs)
    for feeder in feeders.values():
        feeder.close()


def _epochs(feeders: dict[str, Feeder], stack: Tensor, workers: int, count: int, cold: bool) -> dict[str, list[Epoch]]:
    """Let the competitors take turns, in an order that rotates; the first epoch of a warm run is not counted."""
    taken: dict[str, list[Epoch]] = {name: [] for name in feeders}
    names = list(feeders)
    for turn in range(count + (not cold)):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if workers and name == "lance":
                continue  # its sampler gives every worker all batches
            if cold:
                _forget(feeders[name].path)
            epoch = _timed(partial(feeders[name].epoch, BATCH, workers, turn))
            if epoch.records != len(stack):
                raise AssertionError(f"{name} yielded {epoch.records} records of {len(stack)}")
            taken[name].append(epoch)
    for name, feeder in feeders.items():
        if not (workers and name == "lance"):
            _check(name, feeder.epoch(BATCH, 0, 0), stack)
    return {name: epochs[0 if cold else 1 :] for name, epochs in taken.items() if epochs}


def _timed(make: Callable[[], Iterable[Tensor]]) -> Epoch:
    began, processor, first, records = time.perf_counter(), time.process_time(), 0.0, 0
    for batch in make():
        first = first or time.perf_counter() - began
        records += len(batch)
        batch.view(-1)[0].item()
    return Epoch(time.perf_counter() - began, first, time.process_time() - processor, records)


def _check(name: str, epoch: Iterable[Tensor], stack: Tensor) -> None:
    """Compare what an epoch yields with the originals by a sum, which no order changes."""
    found = sum(_total(batch) for batch in epoch)
    if found != _total(stack):
        raise AssertionError(f"{name} yielded other values than were stored")


def _total(tensors: Tensor) -> int:
    return int(tensors.contiguous().view(torch.uint8).sum(dtype=torch.int64))


def _own(material: str, feeder: TensorDB, count: int) -> Iterator[Row]:
    """What only tensordb does: a tenth of the records, and resuming."""
    whole, tenth, resumed = [], [], []
    for turn in range(count + 1):
        streams = [each.stream(shuffle=True, seed=turn, batch_size=BATCH) for each in (feeder.data, feeder.tenth)]
        whole.append(_timed(partial(iter, streams[0])))
        tenth.append(_timed(partial(iter, streams[1])))
        taken = len(feeder.data) * 9 // 10 // BATCH * BATCH
        state = {**iter(streams[0]).state_dict(), "taken": taken}
        began = time.perf_counter()
        streams[0].load_state_dict(state)
        next(iter(streams[0]))
        resumed.append(time.perf_counter() - began)
    share = statistics.median(b.processor / a.processor for a, b in zip(whole[1:], tenth[1:], strict=True))
    yield Row(f"{material}_tenth", f"{material}: a tenth of the records / all, processor", "", "lower", {US: share})
    yield Row(
        f"{material}_resume",
        f"{material}: resume at 90 %, first batch",
        "ms",
        "lower",
        {US: statistics.median(resumed) * 1e3},
    )


def _material(material: str, count: int) -> Tensor:
    if material == "images":
        return crops(count, 96).permute(0, 3, 1, 2).contiguous()
    weights = load_weights()
    if material == "tensors":
        return torch.stack(large_tensors(weights, count, 262_144))
    rows = embedding_rows(weights, count)
    return rows + torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)) * 1e-3


def _forget(path: Path) -> None:
    """Drop what the system caches of the files."""
    for file in path.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _row(what: str, unit: str, better: str, taken: dict[str, list[Epoch]], value: Callable[[Epoch], float]) -> Row:
    values = {name: statistics.median(map(value, epochs)) for name, epochs in taken.items()}
    return Row(what.replace(", ", "_").replace(" ", "_"), what, unit, better, values)  # type: ignore[arg-type]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [each.name for each in FEEDERS]
    parser.add_argument("--size", choices=("tiny", "full"), default="full")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(MATERIALS), help=", ".join(MATERIALS))
    parser.add_argument("--feeders", type=lambda text: text.split(","), default=names, help=", ".join(names))
    parser.add_argument("--workers", type=lambda text: [*map(int, text.split(","))], default=[0, 2])
    parser.add_argument("--epochs", type=int, help="epochs of each competitor")
    parser.add_argument("--records", type=int, help="records of each material, in place of the size's own")
    parser.add_argument("--cold", action="store_true", help="also with the system's cache dropped before each epoch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="record the result")
    parser.add_argument("--folder", type=Path, help="where to put the stores")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
