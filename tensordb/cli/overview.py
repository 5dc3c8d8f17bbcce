"""Commands about datasets as a whole: ls, info, stats, verify. Each returns whether nothing is wrong."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import math
from dataclasses import asdict
from typing import Any

from tensordb.cli.output import printable, size, table, to_json
from tensordb.datasets.statistics import CompressionStats, Share
from tensordb.maintenance import VerifyReport
from tensordb.model import MeasuredError
from tensordb.storage import TensorStorage


def open_to_read(options: argparse.Namespace) -> TensorStorage:
    """Open the database of a command, which must exist already, without changing it."""
    return TensorStorage(options.path, read_only=True, busy_timeout=options.busy_timeout)


def ls(options: argparse.Namespace) -> bool:
    """List the datasets, and for people the runs too."""
    with open_to_read(options) as db:
        found = [db.get_compression_stats(name) for name in db.list_datasets()]
        runs = db.sql("SELECT * FROM history.runs ORDER BY created_at").to_pylist()
    if options.json:
        print(to_json([_totals(each) for each in found]))
        return True
    tables = []
    if found or not runs:
        tables.append(_datasets(found) if found else f"no datasets in {printable(options.path)}")
    if runs:
        tables.append(_runs(runs))
    print("\n\n".join(tables))
    return True


def info(options: argparse.Namespace) -> bool:
    """Describe one dataset."""
    with open_to_read(options) as db:
        facts = _facts(db, options.dataset)
    if options.json:
        print(to_json(facts))
    else:
        print(_described(facts))
    return True


def stats(options: argparse.Namespace) -> bool:
    """Show totals by compression and quantization."""
    with open_to_read(options) as db:
        found = db.get_compression_stats(options.dataset)
    if options.json:
        print(to_json(found.to_dict()))
        return True
    rows = [
        [each.compression, each.quantization, f"{each.records:,}", *_sizes(each), *error_columns(each.worst_error)]
        for each in found.shares
    ]
    rows.append(["total", "", f"{found.records:,}", *_sizes(found), *error_columns(found.worst_error)])
    head = ["compression", "quantization", "records", "raw", "stored", "ratio", "worst error", "SNR"]
    print(table(head, rows))
    return True


def verify(options: argparse.Namespace) -> bool:
    """Read everything back; False when something is damaged."""
    with open_to_read(options) as db:
        report = db.verify(options.dataset)
    return show_verified(report, as_json=options.json)


def show_verified(report: VerifyReport, *, as_json: bool) -> bool:
    """Print what was found damaged; False when something is."""
    if as_json:
        damaged = [
            {"dataset": each.dataset, "record_id": each.record_id, "reason": each.reason} for each in report.damaged
        ]
        tensors = [asdict(each) for each in report.damaged_tensors]
        counts = {"records": report.records, "checkpoints": report.checkpoints, "objects": report.objects}
        of_weights = {"weights": report.weights, "damaged_weights": [asdict(each) for each in report.damaged_weights]}
        unreadable = {"unreadable": [asdict(each) for each in report.unreadable]}
        elsewhere = {"damaged_catalog": report.damaged_catalog, "damaged_segments": report.damaged_segments}
        found = {"damaged": damaged, "damaged_tensors": tensors, **of_weights, **elsewhere, **unreadable}
        print(to_json({"ok": report.ok, **counts, **found}))
        return report.ok
    for each in report.damaged:
        print(f"damaged: {printable(each.dataset)} {printable(each.record_id)}: {printable(each.reason)}")
    for tensor in report.damaged_tensors:
        what = f"tensor {tensor.name}" if tensor.name else "state"
        where = f"checkpoint {tensor.checkpoint_id} (run {tensor.run}, step {tensor.step})"
        print(f"damaged: {printable(f'{where} {what}')}: {printable(tensor.reason)}")
    for weight in report.damaged_weights:
        print(f"damaged: weight {printable(weight.hash)}: {printable(weight.reason)}")
    for sentence in report.damaged_catalog:
        print(f"damaged: catalog: {printable(sentence)}")
    for sentence in report.damaged_segments:
        print(f"damaged: {printable(sentence)}")
    for each_here in report.unreadable:
        print(f"unreadable here: {printable(each_here.name)}: {printable(each_here.reason)}")
    count = len(report.damaged) + len(report.damaged_tensors) + len(report.damaged_weights)
    count += len(report.damaged_catalog) + len(report.damaged_segments)
    counts_of = {"records": report.records, "checkpoints": report.checkpoints, "weights": report.weights}
    held = " and ".join(f"{n:,} {what}" for what, n in counts_of.items() if n) or "0 records"
    print(f"{held} in {report.objects:,} objects read back: {verdict(count, len(report.unreadable))}")
    return report.ok


def verdict(damaged: int, unreadable: int) -> str:
    """Return what was found in words."""
    counts = {"damaged": damaged, "unreadable here, which may be sound": unreadable}
    return " and ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "intact"


def error_columns(error: MeasuredError) -> list[str]:
    """Return a measured error as relative L2 and SNR; dashes when nothing was lost."""
    if math.isinf(error.snr_db):
        return ["-", "-"]
    return [f"{error.relative_l2:.1e}", f"{error.snr_db:.1f} dB"]


def _datasets(found: list[CompressionStats]) -> str:
    rows = [[each.dataset, f"{each.records:,}", *_sizes(each)] for each in found]
    return table(["dataset", "records", "raw", "stored", "ratio"], rows)


def _runs(runs: list[dict[str, Any]]) -> str:
    rows = [
        [each["run"], f"{each['checkpoints']:,}", each["latest_step"], size(each["nbytes"]), size(each["added_nbytes"])]
        for each in runs
    ]
    return table(["run", "checkpoints", "latest step", "raw", "added"], rows)


def _totals(found: CompressionStats) -> dict[str, Any]:
    return {
        "dataset": found.dataset,
        "records": found.records,
        "original_nbytes": found.original_nbytes,
        "stored_nbytes": found.stored_nbytes,
        "ratio": found.ratio,
    }


def _sizes(found: CompressionStats | Share) -> list[str]:
    return [size(found.original_nbytes), size(found.stored_nbytes), f"{found.ratio:.3f}"]


def _facts(db: TensorStorage, name: str) -> dict[str, Any]:
    totals = _totals(db.get_compression_stats(name))
    known = db.sql("SELECT created_at, schema, config FROM tensordb.datasets WHERE name = ?", [name]).to_pylist()[0]
    view = '"' + name.replace('"', '""') + '"'
    kinds = f"SELECT dtype, shape, count(*) AS records, sum(nbytes) AS original_nbytes FROM {view} GROUP BY ALL"
    return {
        **totals,
        "created_at": known["created_at"].replace(tzinfo=dt.UTC),
        "schema": json.loads(known["schema"] or "null"),
        "compression_config": json.loads(known["config"] or "null"),
        "fields": _fields(db, view),
        "tensors": db.sql(f"{kinds} ORDER BY records DESC, dtype, shape").to_pylist(),
    }


def _fields(db: TensorStorage, view: str) -> list[dict[str, Any]]:
    """Return name, SQL type and number of values of each metadata field."""
    if not str(db.sql(f"SELECT metadata FROM {view} LIMIT 0").schema.field("metadata").type).startswith("struct"):
        return []
    unpacked = f"SELECT unnest(metadata) FROM {view}"
    described = db.sql(f"DESCRIBE {unpacked}")
    counts = db.sql(f"SELECT count(COLUMNS(*)) FROM ({unpacked})").columns
    names, types = described["column_name"].to_pylist(), described["column_type"].to_pylist()
    return [
        {"name": each, "type": kind, "values": count[0].as_py()}
        for each, kind, count in zip(names, types, counts, strict=True)
    ]


def _described(facts: dict[str, Any]) -> str:
    lines = [
        f"dataset   {printable(facts['dataset'])}",
        f"created   {printable(facts['created_at'])} UTC",
        f"records   {facts['records']:,}",
        f"size      {size(facts['original_nbytes'])} raw, {size(facts['stored_nbytes'])} stored",
        f"ratio     {facts['ratio']:.3f}",
        f"schema    {printable(facts['schema']) if facts['schema'] else 'none: any tensor, any metadata'}",
        f"config    {printable(facts['compression_config'] or 'that of whoever writes')}",
    ]
    if facts["fields"]:
        rows = [[f"metadata.{each['name']}", each["type"], f"{each['values']:,}"] for each in facts["fields"]]
        lines += ["", table(["field", "SQL type", "values"], rows)]
    if facts["tensors"]:
        kinds = [
            [each["dtype"], each["shape"], f"{each['records']:,}", size(int(each["original_nbytes"]))]
            for each in facts["tensors"]
        ]
        lines += ["", table(["dtype", "shape", "records", "raw"], kinds)]
    return "\n".join(lines)
