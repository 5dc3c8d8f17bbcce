"""How fast does a dataset feed a training loop: shuffled epochs of tensordb, Lance, LitData, datasets and safetensors?

Run `python benchmarks/loading.py`; README.md beside this file explains the terms and the output. Tensors in memory,
indexed batch by batch, are the bound. With `--size tiny` it only checks that every competitor yields each record once.

Warm epochs take turns in one process. Each cold one has a process of its own, which opens the store after the system
was told to forget its files, and says how long the first batch took, what was read from the disk, and how much memory
was taken at most, mapped files left out. Processor time includes that of workers.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
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
    """What one epoch took: seconds, seconds to the first batch, processor seconds, and the records it had.

    An epoch of a process of its own has, too, bytes that were read from the disk, and most bytes of memory it took.
    """

    seconds: float
    first: float
    processor: float
    records: int
    read: int = 0
    memory: int = 0


def main() -> None:
    """Measure and print."""
    options = _options()
    if options.child:
        _child(options.child)
        return
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
    feeders: dict[str, Feeder] = {}
    for each in competitors:
        feeder = feeders[each.name] = each(folder / (each.like or each.name).replace(" ", "-"))
        if not feeder.path.exists():
            feeder.write(stack)
    print(f"\n{material}: {len(stack):,} {MATERIALS[material]}", flush=True)
    stored = {name: folder_bytes(each.path)[0] / stack.nbytes for name, each in feeders.items() if each.on_disk}
    yield Row(f"{material}_stored", f"{material}: folder / raw", "", "lower", stored)
    if options.cold:
        yield from _cold(material, feeders, stack, options)
    for feeder in feeders.values():
        feeder.open(stack.shape[1:], len(stack))
    for workers in options.workers:
        if workers and options.size == "tiny" and material != options.only[0]:
            continue  # starting them would be nearly all of the run, and one material shows that they yield everything
        taken = _epochs(feeders, stack, workers, options.epochs or sizes.epochs)
        yield from _rows(f"{material}, {workers} workers, warm", taken)
    ours = feeders.get(US)
    if isinstance(ours, TensorDB):
        yield from _own(material, ours, options.epochs or sizes.epochs)
    for feeder in feeders.values():
        feeder.close()


def _rows(what: str, taken: dict[str, list[Epoch]]) -> Iterator[Row]:
    yield _row(what, "records/s", "higher", taken, lambda epoch: epoch.records / epoch.seconds)
    yield _row(f"{what}, first batch", "ms", "lower", taken, lambda epoch: epoch.first * 1e3)
    yield _row(f"{what}, processor", "s", "lower", taken, lambda epoch: epoch.processor)


def _cold(material: str, feeders: dict[str, Feeder], stack: Tensor, options: argparse.Namespace) -> Iterator[Row]:
    """Have processes of their own read what nobody has mapped or cached."""
    asked = {name: each for name, each in feeders.items() if each.on_disk}
    for workers in options.workers:
        taken: dict[str, list[Epoch]] = {name: [] for name, each in asked.items() if each.with_workers or not workers}
        for turn in range(options.epochs or 3):
            for name in taken:
                _forget(asked[name].path)
                epoch = _in_a_process(asked[name], stack, workers, turn)
                if epoch.records != len(stack):
                    raise AssertionError(f"{name} yielded {epoch.records} records of {len(stack)}")
                taken[name].append(epoch)
        what = f"{material}, {workers} workers, cold"
        yield from _rows(what, taken)
        yield _row(f"{what}, read from disk", "MB", "lower", taken, lambda epoch: epoch.read / 1e6)
        if not workers:
            yield _row(f"{what}, memory", "MB", "lower", taken, lambda epoch: epoch.memory / 1e6)


def _in_a_process(feeder: Feeder, stack: Tensor, workers: int, turn: int) -> Epoch:
    """Return an epoch of a process that has loaded its libraries and not yet opened the store."""
    told = json.dumps([feeder.name, str(feeder.path), list(stack.shape[1:]), len(stack), workers, turn])
    command = [sys.executable, __file__, "--child", told]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Epoch(**json.loads(done.stdout.splitlines()[-1]))


def _child(told: str) -> None:
    """Be that process."""
    name, path, spec, count, workers, turn = json.loads(told)
    feeder = next(each for each in FEEDERS if each.name == name)(Path(path))
    feeder.load()
    before, read = _anonymous_bytes(), _read_bytes()
    peak, stop = [before], threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            peak[0] = max(peak[0], _anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()

    def epoch() -> Iterator[Tensor]:
        feeder.open(spec, count)
        yield from feeder.epoch(BATCH, workers, turn)

    found = _timed(epoch)
    stop.set()
    watcher.join()
    print(json.dumps({**asdict(found), "read": _read_bytes() - read, "memory": peak[0] - before}))


def _anonymous_bytes() -> int:
    """Return the memory of this process, mapped files left out."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon", "RssShmem")))


def _read_bytes() -> int:
    """Return what this process and those that it waited for have read from the disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("read_bytes")))


def _epochs(feeders: dict[str, Feeder], stack: Tensor, workers: int, count: int) -> dict[str, list[Epoch]]:
    """Let the competitors take turns, in an order that rotates; the first epoch is not counted."""
    names = [name for name, each in feeders.items() if each.with_workers or not workers]
    taken: dict[str, list[Epoch]] = {name: [] for name in names}
    for turn in range(count + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            epoch = _timed(partial(feeders[name].epoch, BATCH, workers, turn))
            if epoch.records != len(stack):
                raise AssertionError(f"{name} yielded {epoch.records} records of {len(stack)}")
            taken[name].append(epoch)
    for name in names:
        _check(name, feeders[name].epoch(BATCH, 0, 0), stack)
    return {name: epochs[1:] for name, epochs in taken.items()}


def _timed(make: Callable[[], Iterable[Tensor]]) -> Epoch:
    began, processor, first, records = time.perf_counter(), _processor_seconds(), 0.0, 0
    for batch in make():
        first = first or time.perf_counter() - began
        records += len(batch)
        batch.view(-1)[0].item()
    return Epoch(time.perf_counter() - began, first, _processor_seconds() - processor, records)


def _processor_seconds() -> float:
    """Return the processor time of this process and of those it waited for."""
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + workers.ru_utime + workers.ru_stime


def _check(name: str, epoch: Iterable[Tensor], stack: Tensor) -> None:
    """Compare what an epoch yields with the originals by a sum, which no order changes."""
    found = sum(_total(batch) for batch in epoch)
    if found != _total(stack):
        raise AssertionError(f"{name} yielded other values than were stored")


def _total(tensors: Tensor) -> int:
    return int(tensors.contiguous().view(torch.uint8).sum(dtype=torch.int64))


def _own(material: str, feeder: TensorDB, count: int) -> Iterator[Row]:
    """What only tensordb does: a tenth of the records, and resuming."""
    kinds = {"scattered": feeder.tenth, "together": feeder.part}
    shares: dict[str, list[float]] = {kind: [] for kind in kinds}
    resumed = []
    for turn in range(count + 1):
        streams = {
            kind: data.stream(shuffle=True, seed=turn, batch_size=BATCH)
            for kind, data in {"all": feeder.data, **kinds}.items()
        }
        whole = _timed(partial(iter, streams["all"]))
        for kind in kinds:
            shares[kind].append(_timed(partial(iter, streams[kind])).processor / whole.processor)
        taken = len(feeder.data) * 9 // 10 // BATCH * BATCH
        state = {**iter(streams["all"]).state_dict(), "taken": taken}
        began = time.perf_counter()
        streams["all"].load_state_dict(state)
        next(iter(streams["all"]))
        resumed.append(time.perf_counter() - began)
    for kind, found in shares.items():
        what = f"{material}: a tenth of the records, {kind} / all, processor"
        yield Row(f"{material}_tenth_{kind}", what, "", "lower", {US: statistics.median(found[1:])})
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
    """Drop what the system caches of the files, which only goes for what is on the disk, and mapped by nobody."""
    for file in path.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
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
    parser.add_argument("--cold", action="store_true", help="also epochs that begin with nothing in the system's cache")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="record the result")
    parser.add_argument("--folder", type=Path, help="where to put the stores")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
