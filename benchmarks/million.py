"""Does a dataset of a million small records grow as fast at its end as at its beginning?

Run `python benchmarks/million.py`. Records come in tenths: each tenth is inserted, in batches or one by one, and then
compacted. Of each it prints the records a second of both, by the clock and by processor time (which a busy machine
disturbs less), the bytes on disk and the peak of memory; of the whole, how the last tenth compares with the first, and
how long a fresh process takes to open the folder. With `--size tiny` it only checks that
everything comes back as it was inserted, in seconds.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from measure import peak_memory
from report import format_number, format_table, machine

from tensordb import TensorStorage

DATASET = "vectors"
PARTS = 10
OPENING = """
import sys, time
from tensordb import TensorStorage
clock, processor = time.perf_counter(), time.process_time()
db = TensorStorage(sys.argv[1])
print(time.perf_counter() - clock, time.process_time() - processor)
"""


@dataclass(frozen=True)
class Part:
    """What one tenth took: seconds by the clock and of the processor, and bytes when it was done."""

    records: int
    insert_seconds: float
    insert_processor: float
    compact_seconds: float
    compact_processor: float
    disk: int
    peak: int

    def rate(self) -> float:
        """Records a second, inserted and compacted, by the clock."""
        return self.records / (self.insert_seconds + self.compact_seconds)

    def processor_rate(self) -> float:
        """The same for a second of processor time."""
        return self.records / (self.insert_processor + self.compact_processor)


def vectors(first: int, count: int, width: int) -> torch.Tensor:
    """Return rows that look like embeddings: normal, scaled to a norm of one."""
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(first))
    return torch.nn.functional.normalize(rows, dim=1)


def grow(folder: Path, options: argparse.Namespace) -> Iterator[Part]:
    """Insert and compact the records tenth by tenth."""
    count = options.records // PARTS
    with TensorStorage(folder, compression_preset=options.preset) as db:
        db.create_dataset(DATASET)
        for part in range(PARTS):
            first = part * count
            insert = _timed(lambda first=first: _insert(db, first, count, options))  # type: ignore[misc]
            compact = _timed(db.maintenance.compact)
            yield Part(count, *insert, *compact, _disk(folder), peak_memory())


def _insert(db: TensorStorage, first: int, count: int, options: argparse.Namespace) -> None:
    for begin in range(first, first + count, options.batch):
        size = min(options.batch, first + count - begin)
        rows = vectors(begin, size, options.width)
        if options.how == "batches":
            db.insert_many(DATASET, rows, [{"n": begin + at} for at in range(size)])
            continue
        for at in range(size):
            db.insert(DATASET, rows[at], {"n": begin + at})


def check(folder: Path, options: argparse.Namespace) -> None:
    """Compare every record with what was inserted."""
    count = options.records // PARTS
    with TensorStorage(folder, read_only=True) as db:
        seen = 0
        for record in db.scan(DATASET):
            number = record.metadata["n"]
            begin = number - number % count % options.batch
            size = min(options.batch, (begin // count + 1) * count - begin)
            assert record.tensor.equal(vectors(begin, size, options.width)[number - begin]), number
            seen += 1
        assert seen == count * PARTS
        assert db.verify().ok


def opening(folder: Path, rounds: int) -> tuple[float, float]:
    """Return the median seconds in which fresh processes open the folder, by the clock and of the processor."""
    command = [sys.executable, "-c", OPENING, str(folder)]
    runs = [
        tuple(map(float, subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()))
        for _ in range(rounds)
    ]
    return statistics.median(run[0] for run in runs), statistics.median(run[1] for run in runs)


def main() -> None:
    """Measure, print, and optionally record."""
    options = _options()
    print(f"machine: {', '.join(f'{name} {value}' for name, value in machine().items())}")
    print(f"records: {options.records:,} of {options.width} float32, in {options.how}, preset {options.preset}")
    # A terminated run leaves the same way as an interrupted one, which removes its folder.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="tensordb-million-", dir=options.folder) as name:
        folder, parts = Path(name) / "db", list[Part]()
        for part in grow(folder, options):
            parts.append(part)
            rates = f"{part.rate():,.0f} records/s, {part.processor_rate():,.0f} a second of the processor"
            print(f"done: {len(parts)} of {PARTS}, {rates}", flush=True)
        opened, processor = opening(folder, 3 if options.size == "tiny" else 9)
        if options.size == "tiny":
            check(folder, options)
    print(f"\n{_table(parts)}\n")
    raw = options.records // PARTS * PARTS * options.width * 4
    print(f"last tenth against the first: {_against(parts, Part.rate)} by the clock, ", end="")
    print(f"{_against(parts, Part.processor_rate)} by processor time")
    print(f"disk: {parts[-1].disk / 1e6:,.0f} MB for {raw / 1e6:,.0f} MB raw, {raw / parts[-1].disk:.2f} x")
    print(f"a fresh process opens the folder in {1e3 * opened:.0f} ms, {1e3 * processor:.0f} ms of the processor")
    if options.size == "tiny":
        print("tiny: every record came back as it was inserted; the figures above mean nothing")
    if options.json:
        result = {"machine": machine(), "records": options.records, "width": options.width, "how": options.how}
        figures = {"parts": [asdict(part) for part in parts], "open_seconds": opened, "open_processor": processor}
        options.json.write_text(json.dumps(result | figures, indent=2) + "\n")


def _table(parts: list[Part]) -> str:
    header = ["records", "inserted/s", "compacted/s", "both/s", "both/s of processor", "disk MB", "peak MB"]
    lines = [
        [
            f"{at * part.records:,}",
            format_number(part.records / part.insert_seconds),
            format_number(part.records / part.compact_seconds),
            format_number(part.rate()),
            format_number(part.processor_rate()),
            format_number(part.disk / 1e6),
            format_number(part.peak / 1e6),
        ]
        for at, part in enumerate(parts, 1)
    ]
    return format_table([header, *lines])


def _against(parts: list[Part], rate: Callable[[Part], float]) -> str:
    return f"{100 * rate(parts[-1]) / rate(parts[0]):.0f} %"


def _timed(action: Callable[[], object]) -> tuple[float, float]:
    clock, processor = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - clock, time.process_time() - processor


def _disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=("tiny", "full"), default="full")
    parser.add_argument("--records", type=int, help="default: 1,000,000, or 2,000 when tiny")
    parser.add_argument("--width", type=int, default=384, help="float32 values of a record")
    parser.add_argument("--how", choices=("batches", "singles"), default="batches")
    parser.add_argument("--batch", type=int, help="records of a batch; default: 1,000, or 50 when tiny")
    parser.add_argument("--preset", default="lossless")
    parser.add_argument("--json", type=Path, metavar="FILE", help="record the result")
    parser.add_argument("--folder", type=Path, help="where to put the database: a real disk, or durability is free")
    options = parser.parse_args()
    tiny = options.size == "tiny"
    options.records = options.records or (2_000 if tiny else 1_000_000)
    options.batch = options.batch or (50 if tiny else 1_000)
    return options


if __name__ == "__main__":
    main()
