"""Rows of a benchmark's result, printed as a table with the competitors side by side, and as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

US = "tensordb"


@dataclass(frozen=True, slots=True)
class Row:
    """One measure of every competitor that took part.

    Attributes:
        key: Short name, as targets refer to it.
        label: What was measured.
        unit: Unit of the values.
        better: Which direction wins.
        values: Value by competitor.
    """

    key: str
    label: str
    unit: str
    better: Literal["lower", "higher"]
    values: Mapping[str, float]

    def best_peer(self) -> str | None:
        """Name of the best competitor but tensordb, if any took part."""
        peers = {name: value for name, value in self.values.items() if name != US}
        choose = max if self.better == "higher" else min
        return choose(peers, key=lambda name: peers[name]) if peers else None

    def advantage(self, peer: str) -> float:
        """How many times better tensordb is than `peer`; below 1 it is worse."""
        ours, theirs = self.values[US], self.values[peer]
        return ours / theirs if self.better == "higher" else theirs / ours

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "values": dict(self.values)}


def format_rows(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Lay out rows as a table; the last column compares tensordb with the best peer."""
    header = ["measure", "unit", *columns, f"{US} against the best peer"]
    return format_table([header, *(_cells(row, columns) for row in rows)])


def format_table(lines: Sequence[Sequence[str]]) -> str:
    """Lay out cells in columns, the first line as header; numbers lean right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    laid_out = ["  ".join(map(_aligned, line, widths)) for line in ruled]
    return "\n".join(line.rstrip() for line in laid_out)


def format_number(value: float) -> str:
    """Three significant digits or so, without exponents."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def machine() -> dict[str, str | int | None]:
    """What the figures were measured on and with."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **dict(_versions(("tensordb", "torch", "duckdb", "pylance", "safetensors"))),
    }


def _cells(row: Row, columns: Sequence[str]) -> list[str]:
    values = [format_number(row.values[name]) if name in row.values else "-" for name in columns]
    peer = row.best_peer()
    compared = f"{format_number(row.advantage(peer))} x {peer}" if peer and US in row.values else "-"
    return [row.label, row.unit, *values, compared]


def _aligned(cell: str, width: int) -> str:
    is_number = cell == "-" or cell.replace(",", "").replace(".", "", 1).removeprefix("-").isdigit()
    return cell.rjust(width) if is_number else cell.ljust(width)


def _versions(packages: Iterable[str]) -> Iterable[tuple[str, str]]:
    for package in packages:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"
