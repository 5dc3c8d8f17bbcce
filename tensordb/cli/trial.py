"""Measuring what each compression preset makes of the same weights."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tensordb.cli.digits import Examples, accuracy
from tensordb.cli.output import size, table
from tensordb.cli.overview import error_columns
from tensordb.datasets.record import Record
from tensordb.datasets.statistics import CompressionStats
from tensordb.encoding.presets import COMPRESSION_PRESETS
from tensordb.storage import TensorStorage

_READS = 3


@dataclass(frozen=True)
class Trial:
    """One preset's figures.

    Attributes:
        stats: What is stored against raw, and the worst measured error.
        write_rate: Raw MB/s of one durable `insert_many`.
        read_rate: Raw MB/s of `get_many`, the best of three.
        accuracy: Of the network rebuilt from what was stored, on the held-out examples.
    """

    preset: str
    stats: CompressionStats
    write_rate: float
    read_rate: float
    accuracy: float


def measure(preset: str, weights: Sequence[Record], held_out: Examples) -> Trial:
    """Store weights under a preset in a database of their own, read them back, and rebuild the network.

    Args:
        preset: Name of the preset.
        weights: Parameters of one or more epochs, the last epoch's at the end.
        held_out: What the rebuilt network is tested on.
    """
    # A database each: in a common one, equal weights of two lossless presets would share one object.
    with tempfile.TemporaryDirectory(prefix="tensordb-demo-") as folder, TensorStorage(folder) as db:
        db.create_dataset("weights", compression_preset=preset)
        start = time.perf_counter()
        ids = db.insert_many("weights", [each.tensor for each in weights], [each.metadata for each in weights])
        write_s = time.perf_counter() - start
        read_s, found = _read(db, ids)
        stats = db.get_compression_stats("weights")
    last = {each.metadata["name"]: each.tensor for each in found}
    megabytes = stats.original_nbytes / 1e6
    return Trial(preset, stats, megabytes / write_s, megabytes / read_s, accuracy(last, held_out))


def report(trials: Sequence[Trial]) -> str:
    """Return the figures as a table."""
    head = ["preset", "quantize", "compress", "stored", "ratio", "write", "read", "error", "SNR", "accuracy"]
    return table(head, [_row(each) for each in trials])


def _read(db: TensorStorage, ids: Sequence[str]) -> tuple[float, list[Record]]:
    best = float("inf")
    for _ in range(_READS):
        start = time.perf_counter()
        found = db.get_many("weights", ids)
        best = min(best, time.perf_counter() - start)
    return best, found


def _row(trial: Trial) -> list[Any]:
    config = COMPRESSION_PRESETS[trial.preset]
    return [
        trial.preset,
        config.quantization,
        config.compression,
        size(trial.stats.stored_nbytes),
        f"{trial.stats.ratio:.3f}",
        f"{trial.write_rate:.0f} MB/s",
        f"{trial.read_rate:.0f} MB/s",
        *error_columns(trial.stats.worst_error),
        f"{trial.accuracy:.2%}",
    ]
