"""What a whole save and load cost, and what reading a little of a large tensor does."""

from __future__ import annotations

import os
import shutil
import statistics
from pathlib import Path

import torch
from measure import race, timed
from safetensors.torch import load_file, save_file
from torch import Tensor

from tensordb import TensorStorage
from tensordb.encoding import PayloadReader, encode, get_compression_preset

_DATASET = "benchmark"


def save_and_load(tensor: Tensor, folder: Path, rounds: int) -> dict[str, dict[str, tuple[float, ...]]]:
    """Time preset `none` against safetensors, both durable when saved and in owned memory when loaded.

    tensordb: `insert` (payload and catalog synced) and `get_tensor_by_id` of one record. safetensors: `save_file`,
    fsync of file and folder, and `load_file` with a clone of the mapped tensor. The tensor differs in each round.

    Returns:
        Seconds by action (``save``, ``load``) and competitor, one a round.
    """
    path = folder / "peer.safetensors"
    with TensorStorage(folder / "database") as database:
        database.create_dataset(_DATASET)
        database.set_compression_preset("none")
        ids: dict[int, str] = {}

        def insert(turn: int) -> None:
            ids[turn] = database.insert(_DATASET, tensor, {})

        def save(_: int) -> None:
            save_file({"tensor": tensor}, path)
            for each in (path, folder):
                _sync(each)

        samples: dict[str, dict[str, list[float]]] = {}
        saves, loads = (
            {"tensordb": insert, "safetensors": save},
            {
                "tensordb": lambda turn: database.get_tensor_by_id(_DATASET, ids[turn]).tensor,
                "safetensors": lambda _: load_file(path)["tensor"].clone(),
            },
        )
        for turn in range(-1, rounds):  # the first is a warm-up
            tensor.view(-1)[0] = turn
            for action, sides in (("save", saves), ("load", loads)):
                for name in sorted(sides, reverse=turn % 2 == 0):
                    seconds = timed(lambda run=sides[name], turn=turn: run(turn))
                    samples.setdefault(action, {}).setdefault(name, []).append(seconds)
    shutil.rmtree(folder / "database")
    return {action: {name: tuple(each[1:]) for name, each in by.items()} for action, by in samples.items()}


def row_reading(tensor: Tensor, rounds: int) -> dict[str, float]:
    """Return the milliseconds that one random row of a compressed tensor takes, and its raw size in MB."""
    payload = b"".join(encode(tensor, get_compression_preset("lossless")).buffers)
    opened = PayloadReader(payload)
    rows = torch.randint(len(tensor), (rounds + 3,), generator=torch.Generator().manual_seed(0)).tolist()
    timings = race(
        {
            "row, payload opened before": lambda turn: opened.decode_index(rows[turn]),
            "row, payload opened for it": lambda turn: PayloadReader(payload).decode_index(rows[turn]),
        },
        rounds=rounds,
    )
    if not torch.equal(opened.decode_index(rows[0]), tensor[rows[0]]):
        raise AssertionError("decode_index returned another row")
    return {"MB": tensor.nbytes / 1e6, **{name: timing.p50 * 1e3 for name, timing in timings.items()}}


def page_ratio(vectors: Tensor, rows: int) -> float:
    """Return raw over stored bytes of vectors in pages of so many rows."""
    config = get_compression_preset("lossless")
    pages = [encode(vectors[at : at + rows], config, page=True).nbytes for at in range(0, len(vectors), rows)]
    return vectors.nbytes / sum(pages)


def median_of_ratios(above: tuple[float, ...], below: tuple[float, ...]) -> float:
    """Return the median over rounds of one competitor's seconds over another's."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
