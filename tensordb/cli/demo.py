"""The command demo: one walk through the library on real data, with the call that does each step."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

from tensordb.cli.digits import Digits, Examples, accuracy, load_digits, network, one_thread, picture, step
from tensordb.cli.output import printable, size, table
from tensordb.cli.trial import measure, report
from tensordb.datasets.record import describe
from tensordb.encoding.presets import COMPRESSION_PRESETS
from tensordb.errors import InvalidInputError
from tensordb.storage import TensorStorage

_EPOCHS = 12
_BATCH = 64
_COMPARED_EPOCHS = 4
_HISTORY = """
  SELECT metadata.epoch AS epoch, min(metadata.loss) AS loss, min(metadata.accuracy) AS accuracy,
         count(*) AS tensors
  FROM weights GROUP BY epoch ORDER BY epoch"""


def demo(options: argparse.Namespace) -> bool:
    """Run the demo in a new folder, or in a temporary one."""
    start = time.perf_counter()
    digits = load_digits()
    if options.path is None:
        with tempfile.TemporaryDirectory(prefix="tensordb-demo-") as folder:
            _walk(folder, digits)
        kept = "The database was temporary; `tensordb demo PATH` keeps it."
    else:
        _check_new(options.path)
        _walk(options.path, digits)
        path = printable(options.path)
        kept = f"Kept in {path}. Look at it with:\n  tensordb ls {path}\n  tensordb info {path} weights\n"
        kept += f'  tensordb query {path} weights "metadata.accuracy > 0.97" --limit 5\n  tensordb verify {path}'
    print(f"\nDone in {time.perf_counter() - start:.1f} s. {kept}")
    return True


def _check_new(path: str) -> None:
    folder = Path(path).expanduser()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InvalidInputError(f"{path!r} exists and is not an empty folder; give the demo a new one")


def _walk(path: str, digits: Digits) -> None:
    with TensorStorage(path) as db, one_thread():
        _insert(db, digits)
        held_out = Examples.of(db.query("digits", "metadata.split = 'test'"))
        _train(db, held_out)
        _ask(db)
        _sample(db)
        _turn_pages(db)
        _compare(db, held_out)


def _insert(db: TensorStorage, digits: Digits) -> None:
    _say("1. Insert handwritten digits with their labels", 'db.insert_many("digits", images, metadata)')
    db.create_dataset("digits", {"shape": [8, 8], "dtype": "uint8", "metadata": {"label": "int", "split": "str"}})
    start = time.perf_counter()
    ids = db.insert_many("digits", digits.images, digits.metadata, progress=sys.stderr.isatty())
    _show(f"{len(ids):,} records in {time.perf_counter() - start:.2f} s: {_sizes(db, 'digits')}")


def _train(db: TensorStorage, held_out: Examples) -> None:
    _say(
        "2. Train a network from the database, and store its weights each epoch",
        'batch = db.get_many("digits", ids)',
        'db.insert_many("weights", parameters, [{"epoch": 1, "name": "first.weight", "loss": …}, …])',
    )
    db.create_dataset("weights", {"dtype": "float32", "metadata": {"epoch": "int", "name": "str", "loss": "float"}})
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    order = torch.Generator().manual_seed(0)
    ids = db.sql("SELECT record_id FROM digits WHERE metadata.split = 'train'")["record_id"].to_pylist()
    start = time.perf_counter()
    for epoch in tqdm(range(1, _EPOCHS + 1), "training", unit=" epoch", leave=False, disable=None):
        shuffled = [ids[place] for place in torch.randperm(len(ids), generator=order).tolist()]
        losses = [
            step(net, optimizer, Examples.of(db.get_many("digits", shuffled[first : first + _BATCH])))
            for first in range(0, len(ids), _BATCH)
        ]
        weights = net.state_dict()
        known = {"epoch": epoch, "loss": sum(losses) / len(losses), "accuracy": accuracy(weights, held_out)}
        db.insert_many("weights", list(weights.values()), [{"name": name, **known} for name in weights])
    count = sum(each.numel() for each in net.parameters())
    _show(f"{_EPOCHS} epochs, {count:,} parameters, in {time.perf_counter() - start:.1f} s: {_sizes(db, 'weights')}")


def _ask(db: TensorStorage) -> None:
    where = "metadata.accuracy > 0.97 AND metadata.name = 'second.weight'"
    _say(
        "3. Ask in SQL: conditions for records, and whole statements",
        f'db.query("weights", "{where}",',
        '         order_by="metadata.loss", limit=3)',
    )
    found = db.query("weights", where, order_by="metadata.loss", limit=3)
    rows = [[each.id, describe(each.tensor), each.metadata["epoch"], f"{each.metadata['loss']:.4f}"] for each in found]
    _show(table(["record_id", "tensor", "epoch", "loss"], rows))
    _show(f"\n>>> db.sql('''{_HISTORY}''')")
    history = db.sql(_HISTORY).to_pylist()
    rows = [
        [each["epoch"], f"{each['loss']:.4f}", f"{each['accuracy']:.2%}", each["tensors"], _bar(each, history[0])]
        for each in history
    ]
    _show(table(["epoch", "loss", "accuracy", "tensors", "loss as a bar"], rows))


def _sample(db: TensorStorage) -> None:
    _say("4. Sample at random", 'db.sample_dataset("digits", 5, seed=7, where="metadata.label >= 3")')
    _show(picture(db.sample_dataset("digits", 5, seed=7, where="metadata.label >= 3")))


def _turn_pages(db: TensorStorage) -> None:
    _say("5. Turn pages", 'page = db.get_records_paginated("weights", offset=60, limit=4)')
    page = db.get_records_paginated("weights", offset=60, limit=4)
    rows = [
        [
            *(each.metadata["epoch"], each.metadata["name"], describe(each.tensor), f"{each.tensor.std():.4f}"),
            *(size(each.encoding.stored_nbytes), f"{each.encoding.ratio:.3f}"),
        ]
        for each in page
    ]
    _show(repr(page))
    _show(table(["epoch", "name", "tensor", "std", "stored", "ratio"], rows))


def _compare(db: TensorStorage, held_out: Examples) -> None:
    weights = db.query("weights", "metadata.epoch > ?", params=[_EPOCHS - _COMPARED_EPOCHS], order_by="metadata.epoch")
    _say("6. Compare the presets on the weights", "TensorStorage(path, compression_preset=…)")
    raw = size(sum(each.encoding.original_nbytes for each in weights))
    names = tqdm(COMPRESSION_PRESETS, "presets", unit=" preset", leave=False, disable=None)
    trials = [measure(name, weights, held_out) for name in names]
    _show(report(trials))
    _show(
        f"{raw} of weights (the last {_COMPARED_EPOCHS} epochs), a database each; durable writes; speeds in raw bytes;"
        "\nerror: largest of any tensor, L2 of the difference over L2 of the tensor;"
        f"\naccuracy: the network rebuilt from what was read, on {len(held_out.labels)} digits it was not trained on"
    )


def _bar(epoch: dict[str, float], first: dict[str, float]) -> str:
    return "█" * round(40 * epoch["loss"] / first["loss"])


def _sizes(db: TensorStorage, name: str) -> str:
    found = db.get_compression_stats(name)
    return f"{size(found.original_nbytes)} → {size(found.stored_nbytes)} (ratio {found.ratio:.2f}, lossless)"


def _say(title: str, *calls: str) -> None:
    print(f"\n{title}")
    for number, call in enumerate(calls):
        _show(call if call.startswith(" ") and number else f">>> {call}")


def _show(text: str) -> None:
    print("\n".join(f"   {line}".rstrip() for line in text.split("\n")))
