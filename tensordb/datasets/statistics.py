"""Honest totals: everything stored, against the raw tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import duckdb

from tensordb.catalog import datasets, inline, objects, records
from tensordb.catalog.datasets import DatasetRow
from tensordb.catalog.inline import InlineRow
from tensordb.catalog.objects import Total
from tensordb.catalog.records import Selection
from tensordb.display import html_table
from tensordb.encoding.reading import PayloadReader
from tensordb.engine import Database
from tensordb.errors import FormatError, IntegrityError
from tensordb.model import Encoding, MeasuredError


@dataclass(frozen=True)
class Share:
    """What one kind of compression and quantization holds.

    Attributes:
        records: Records stored so.
        original_nbytes: Bytes of their raw tensors.
        stored_nbytes: Bytes of their payloads, with headers, scales and checksums.
        worst_error: Largest measured error among them.
    """

    compression: str
    quantization: str
    records: int
    original_nbytes: int
    stored_nbytes: int
    worst_error: MeasuredError

    @property
    def ratio(self) -> float:
        """Original over stored bytes."""
        return _ratio(self.original_nbytes, self.stored_nbytes)


@dataclass(frozen=True)
class CompressionStats:
    """Totals of a dataset, or of the whole database.

    Attributes:
        dataset: The dataset, None for the whole database.
        records: Number of records.
        objects: Number of stored objects: a page is one, and equal tensors share one (small ones of different
            datasets once they were compacted).
        original_nbytes: Bytes of the raw tensors of all records.
        stored_nbytes: Bytes of their payloads, each object once, with headers, scales and checksums. The catalog's
            own rows are not in it.
        shares: The same by compression and quantization, largest first.
        worst_error: Largest measured error of all.
    """

    dataset: str | None
    records: int
    objects: int
    original_nbytes: int
    stored_nbytes: int
    shares: tuple[Share, ...]
    worst_error: MeasuredError

    @property
    def ratio(self) -> float:
        """Original over stored bytes; 1.0 when there is nothing."""
        return _ratio(self.original_nbytes, self.stored_nbytes)

    def to_dict(self) -> dict[str, Any]:
        """Return the totals as plain values, ratios included."""
        plain = asdict(self)
        plain["ratio"] = self.ratio
        plain["shares"] = [{**asdict(share), "ratio": share.ratio} for share in self.shares]
        return plain

    def _repr_html_(self) -> str:
        head = ["compression", "quantization", "records", "original bytes", "stored bytes", "ratio"]
        head += ["worst error (L2)", "worst SNR"]
        rows = [
            (
                each.compression,
                each.quantization,
                f"{each.records:,}",
                f"{each.original_nbytes:,}",
                f"{each.stored_nbytes:,}",
                f"{each.ratio:.3f}",
                f"{each.worst_error.relative_l2:.2e}",
                f"{each.worst_error.snr_db:.1f} dB" if each.worst_error.relative_l2 else "lossless",
            )
            for each in self.shares
        ]
        title = f"{self.dataset or 'all datasets'}: {self.records:,} records, ratio {self.ratio:.3f}"
        return html_table(head, rows, caption=title)


def compression_stats(db: Database, name: str | None) -> CompressionStats:
    """Return the totals of one dataset, or of all for None."""
    with db.catalog.read() as con:
        rows = datasets.fetch_all(con) if name is None else [db.catalog.known.dataset(con, name)]
        count = sum(records.count(con, row, Selection()) for row in rows)
        totals = _merged([*objects.totals(con, [row.table for row in rows]), *_inline_totals(con, rows)])
    return CompressionStats(
        dataset=name,
        records=count,
        objects=sum(each.objects for each in totals),
        original_nbytes=sum(each.original_nbytes for each in totals),
        stored_nbytes=sum(each.stored_nbytes for each in totals),
        shares=tuple(_share(each) for each in totals),
        worst_error=MeasuredError(
            max((each.relative_l2 for each in totals), default=0.0), max((each.max_abs for each in totals), default=0.0)
        ),
    )


def _inline_totals(con: duckdb.DuckDBPyConnection, rows: Sequence[DatasetRow]) -> Iterator[Total]:
    """Yield a total for each record whose payload lies inline: only its own header says what was applied."""
    for row in rows:
        for each in inline.rows_of(con, row):
            applied = _applied(row.name, each)
            yield Total(
                compression=applied.compression,
                quantization=applied.quantization,
                objects=1,
                records=1,
                original_nbytes=each.nbytes,
                stored_nbytes=len(each.payload),
                relative_l2=applied.error.relative_l2,
                max_abs=applied.error.max_abs,
            )


def _applied(name: str, row: InlineRow) -> Encoding:
    try:
        return PayloadReader(row.payload).encoding
    except (IntegrityError, FormatError) as error:
        raise IntegrityError(
            f"record {row.record_id!r} of dataset {name!r} is damaged, so that there are no totals: {error}"
        ) from error


def _merged(totals: Sequence[Total]) -> list[Total]:
    """Return one total for each compression and quantization, largest first."""
    alike: dict[tuple[str, str], list[Total]] = {}
    for each in totals:
        alike.setdefault((each.compression, each.quantization), []).append(each)
    merged = [
        Total(
            *key,
            objects=sum(each.objects for each in group),
            records=sum(each.records for each in group),
            original_nbytes=sum(each.original_nbytes for each in group),
            stored_nbytes=sum(each.stored_nbytes for each in group),
            relative_l2=max(each.relative_l2 for each in group),
            max_abs=max(each.max_abs for each in group),
        )
        for key, group in alike.items()
    ]
    return sorted(merged, key=lambda total: -total.stored_nbytes)


def _share(total: Total) -> Share:
    return Share(
        total.compression,
        total.quantization,
        total.records,
        total.original_nbytes,
        total.stored_nbytes,
        MeasuredError(total.relative_l2, total.max_abs),
    )


def _ratio(original: int, stored: int) -> float:
    return original / stored if original and stored else 1.0
