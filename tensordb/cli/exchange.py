"""Commands that move records in and out: import, export. Each returns True when done.

Progress bars go to stderr, and only to a terminal.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tensordb.cli.output import printable, size, to_json
from tensordb.cli.overview import open_to_read
from tensordb.cli.records import values_of
from tensordb.errors import InvalidInputError
from tensordb.exchange.exporting import Export
from tensordb.exchange.importing import check_path
from tensordb.storage import TensorStorage


def import_(options: argparse.Namespace) -> bool:
    """Insert what a file or a folder holds."""
    check_path(Path(options.source), options.format)  # before a database is created for nothing
    with TensorStorage(options.path, busy_timeout=options.busy_timeout) as db:
        ids = db.import_from(
            options.dataset,
            options.source,
            tensor=options.tensor,
            record_id=options.record_id,
            metadata=options.metadata,
            format=options.format,
            preset=options.preset,
            progress=_shows_bars(),
        )
        total = db.count(options.dataset)
    said = {"dataset": options.dataset, "records": len(ids), "first": ids[0] if ids else None, "total": total}
    text = f"imported {len(ids):,} records into {printable(options.dataset)}, which has {total:,} now"
    print(to_json(said) if options.json else text)
    return True


def export(options: argparse.Namespace) -> bool:
    """Write the records that match to a file."""
    if options.params is not None and options.where is None:
        raise InvalidInputError("--params are the values of --where; give a condition")
    with open_to_read(options) as db:
        found = Export(db._db, options.dataset, options.where, values_of(options.params), options.order_by)
        records = db.count(options.dataset, options.where, params=values_of(options.params))
        path = found.export(
            options.target,
            format=options.format,
            columns=options.column,
            overwrite=options.overwrite,
            progress=_shows_bars(),
        )
    nbytes = _nbytes(path)
    said = {"path": str(path), "records": records, "nbytes": nbytes}
    print(to_json(said) if options.json else f"{printable(str(path))}: {records:,} records, {size(nbytes)}")
    return True


def _shows_bars() -> bool:
    return sys.stderr.isatty()


def _nbytes(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum(os.path.getsize(Path(folder, name)) for folder, _, names in os.walk(path) for name in names)
