"""What this machine and the parts beneath tensordb can do at best: the floor under each figure.

Every limit is measured in the benchmark's own folder, so that it meets the same disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import torch
import zstandard
from measure import Timing, race, seconds_in_subprocess
from report import format_number
from torch import Tensor

CATALOG = "CREATE TABLE records (id BIGINT PRIMARY KEY, place BIGINT, metadata STRUCT(token BIGINT, score DOUBLE))"
# Scores as in data.metadata: without an order that would let DuckDB skip most of the table.
FILL = "INSERT INTO records SELECT i, i, {'token': i, 'score': (i * 7919 % 1000003) / 1000003} FROM range(?) r(i)"


@dataclass(frozen=True, slots=True)
class Limit:
    """The best that a part can do alone."""

    key: str
    label: str
    value: float
    unit: str

    def __str__(self) -> str:
        return f"{self.label}: {format_number(self.value)} {self.unit}"


def measure_limits(folder: Path, rows: Tensor, rounds: int, filter_rows: int) -> Iterator[Limit]:
    """Measure every limit.

    Args:
        folder: Empty folder on the benchmark's disk.
        rows: The float32 matrix that `insert_many` stores.
        rounds: Repetitions of the short actions.
        filter_rows: Records of the metadata filter.
    """
    yield from _memory_limits(rounds)
    yield from _disk_limits(folder, rows, rounds)
    yield from _catalog_limits(folder, len(rows), rounds)
    yield Limit("catalog_filter", "DuckDB filter alone", _filter(filter_rows, rounds).p50 * 1e3, "ms")
    yield from _compression_limits(rows)
    seconds = seconds_in_subprocess("import torch", "import duckdb, pyarrow", repetitions=1 if rounds < 20 else 5).p50
    yield Limit("import_duckdb", "import of duckdb and pyarrow alone", seconds * 1e3, "ms")


def _median(action: Callable[[int], object], rounds: int) -> Timing:
    return race({"alone": action}, rounds=rounds)["alone"]


def _memory_limits(rounds: int) -> Iterator[Limit]:
    small, large = torch.rand(262_144), torch.rand(16_000_000)
    target = torch.empty_like(large)
    yield Limit(
        "copy_1mb", "copy of 1 MB, each byte read", _median(lambda _: small.clone().sum(), rounds).p50 * 1e3, "ms"
    )
    seconds = _median(lambda _: target.copy_(large), max(3, rounds // 20)).p50
    yield Limit("memcpy", "memory copy", large.nbytes / seconds / 1e9, "GB/s")


def _disk_limits(folder: Path, rows: Tensor, rounds: int) -> Iterator[Limit]:
    record = rows[0].numpy().tobytes()
    with open(folder / "appended", "wb", buffering=0) as file:

        def append(_: int) -> None:
            file.write(record)
            _datasync(file.fileno())

        latency = _median(append, rounds)
    yield Limit("fdatasync", "append of one row and fdatasync", latency.p50 * 1e3, "ms")
    yield Limit("fdatasync_p99", "append of one row and fdatasync, p99", latency.p99 * 1e3, "ms")

    def write(_: int) -> None:
        with open(folder / "written", "wb", buffering=0) as file:
            rows.numpy().tofile(file)
            _datasync(file.fileno())

    seconds = _median(write, 3).p50
    yield Limit("disk", "durable write of all rows, uncompressed", rows.nbytes / seconds / 1e6, "MB/s")
    yield Limit("write_rows", "durable write of all rows, uncompressed", len(rows) / seconds, "records/s")


def _catalog_limits(folder: Path, count: int, rounds: int) -> Iterator[Limit]:
    with duckdb.connect(str(folder / "alone.duckdb")) as con:
        con.execute(CATALOG)
        con.execute(FILL, [count])
        ids = np.random.default_rng(0).integers(0, count, (rounds + 3, 256))
        one = _median(
            lambda turn: con.execute("SELECT * FROM records WHERE id = ?", [int(ids[turn, 0])]).fetchall(), rounds
        )
        yield Limit("catalog_lookup", "DuckDB point lookup alone", one.p50 * 1e3, "ms")
        many = _median(lambda turn: _lookup_many(con, ids[turn]), rounds)
        yield Limit("catalog_lookup_256", "DuckDB lookup of 256 ids alone", many.p50 * 1e3, "ms")
        new = iter(range(count, count + rounds + 3))
        commit = _median(lambda _: con.execute("INSERT INTO records VALUES (?, 0, NULL)", [next(new)]), rounds)
        yield Limit("catalog_commit", "DuckDB insert and commit alone", commit.p50 * 1e3, "ms")


def _lookup_many(con: Any, ids: np.ndarray[Any, Any]) -> list[Any]:
    # A bound list is quicker than 256 literals, as long as DuckDB may push that many into the index scan.
    con.execute("SET dynamic_or_filter_threshold = 4096")
    return list(con.execute("SELECT * FROM records WHERE id IN (SELECT unnest(?))", [ids.tolist()]).fetchall())


def _filter(count: int, rounds: int) -> Timing:
    query = "SELECT count(*) FROM records WHERE metadata.score < 0.001"
    with duckdb.connect() as con:
        con.execute(CATALOG)
        con.execute(FILL, [count])
        return _median(lambda _: con.execute(query).fetchall(), max(3, rounds // 10))


def _compression_limits(rows: Tensor) -> Iterator[Limit]:
    raw = rows.numpy().tobytes()
    frames: list[bytes] = []
    compressor, decompressor = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
    # Chunks of 256 KiB: a longer window would find the repetitions of the matrix, which no single record has.
    chunks = [raw[start : start + 262_144] for start in range(0, len(raw), 262_144)]
    packing = _median(lambda _: frames.extend(map(compressor.compress, chunks)), 1).p50
    frames = frames[: len(chunks)]
    unpacking = _median(lambda _: [decompressor.decompress(frame) for frame in frames], 1).p50
    yield Limit("zstd_ratio", "zstd 1 without filters, stored / raw", sum(map(len, frames)) / len(raw), "")
    yield Limit("zstd_compress", "zstd 1, compress, one core", len(raw) / packing / 1e6, "MB/s")
    yield Limit("zstd_decompress", "zstd 1, decompress, one core", len(raw) / unpacking / 1e6, "MB/s")
    yield Limit("entropy", "order-0 entropy of the float planes / raw", _plane_entropy(rows), "")


def _plane_entropy(rows: Tensor) -> float:
    bits = rows.numpy().reshape(-1).view(np.uint32)
    # The sign goes to the low end, so that the exponent fills one byte.
    planes = ((bits << 1) | (bits >> 31)).view(np.uint8).reshape(-1, 4)
    counts = [np.bincount(planes[:, plane], minlength=256) for plane in range(4)]
    shares = [count[count > 0] / len(planes) for count in counts]
    return float(sum(-(share * np.log2(share)).sum() for share in shares) / 32)


def _datasync(descriptor: int) -> None:
    # macOS has no fdatasync.
    getattr(os, "fdatasync", os.fsync)(descriptor)
