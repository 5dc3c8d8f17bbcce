"""Datasets and records as one looks at them: a page for a notebook, a grid of plots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

from tensordb.catalog import fields, records, specs
from tensordb.catalog.records import Selection
from tensordb.datasets import lookup
from tensordb.datasets.record import Record, shorten
from tensordb.datasets.statistics import compression_stats
from tensordb.display import html_table
from tensordb.engine import Database
from tensordb.errors import InvalidInputError
from tensordb.looking import plots
from tensordb.looking.pages import thumbnails

_SHOWN = 8
_SPECS_SHOWN = 10

Label = str | Callable[[Record], object] | None


def dataset_html(db: Database, name: str, selection: Selection | None = None) -> str:
    """Return a dataset, or the records of it that match, as HTML: how many, of what kind, the first of them."""
    chosen = selection or Selection()
    with db.catalog.read() as con:
        row = db.catalog.known.dataset(con, name)
        total = records.count(con, row, Selection())
        count = records.count(con, row, chosen)
        kinds = con.execute(
            f"SELECT spec_id, count(*) FROM {row.table} GROUP BY ALL ORDER BY ALL LIMIT {_SPECS_SHOWN + 1}"
        ).fetchall()
        found = specs.fetch(con, [number for number, _ in kinds])
        known = [(field, fields.sql_type(kind) or "") for field, kind in row.fields.fields.items()]
    stats = compression_stats(db, name)
    tensors = [f"{number:,} of {found[spec].dtype}{list(found[spec].shape)}" for spec, number in kinds[:_SPECS_SHOWN]]
    lines = [
        ("records", f"{count:,}" if chosen.where is None else f"{count:,} of {total:,}, where {shorten(chosen.where)}"),
        ("tensors", ", ".join(tensors) + (", …" if len(kinds) > _SPECS_SHOWN else "") or "none"),
        ("bytes", f"{stats.original_nbytes:,} raw, {stats.stored_nbytes:,} stored (ratio {stats.ratio:.2f})"),
        ("metadata", shorten(", ".join(f"{field} {kind}" for field, kind in known), 600) or "none"),
    ]
    table = html_table(["", "dataset"], [("name", name), *lines])
    first = lookup.page(db, name, 0, _SHOWN, chosen).records
    return table + (thumbnails([each.tensor for each in first], [_short_id(each) for each in first]) if first else "")


def grid(records: Iterable[Record], n: int = 16, *, label: Label = None, columns: int | None = None) -> Any:
    """Draw the tensors of the first `n` records side by side.

    Args:
        records: Records, as `query`, `sample_dataset`, a page or a scan gives them.
        n: Most that are drawn.
        label: What stands above each: a metadata field, or a function of the record. None: the record id.
        columns: Pictures in a line (default: as many as lines, 8 at most).

    Returns:
        The matplotlib figure.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        InvalidInputError: There is no record, or what was given are none.
    """
    if isinstance(records, str | bytes) or not isinstance(records, Iterable):
        raise InvalidInputError(f"records is a {type(records).__name__}; give records, such as what query() returns")
    if columns is not None and lookup.check_count(columns, "columns") == 0:
        raise InvalidInputError("columns is 0; give a number from 1, or None")
    chosen = list(islice(records, lookup.check_count(n, "n")))
    odd = next((each for each in chosen if not isinstance(each, Record)), None)
    if not chosen or odd is not None:
        raise InvalidInputError(
            f"there is {'nothing' if odd is None else f'a {type(odd).__name__} among what is'} to draw; give records, "
            "such as what query() returns"
        )
    return plots.grid([each.tensor for each in chosen], titles_of(chosen, label), columns)


def titles_of(records: Sequence[Record], label: Label) -> list[str]:
    """Return what stands above each record."""
    if label is None:
        return [_short_id(each) for each in records]
    if callable(label):
        return [shorten(str(label(each)), 40) for each in records]
    return [shorten(str(each.metadata.get(label, "-")), 40) for each in records]


def _short_id(record: Record) -> str:
    return shorten(record.id, 17)
