"""The speeds that tensordb promises, and whether a run met them.

Each target names the limit that its figure runs into: what the same work costs on this machine when a part that
tensordb cannot do without does nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from limits import Limit
from report import US, Row, format_number, format_table

Rows = Mapping[str, Row]


@dataclass(frozen=True, slots=True)
class Target:
    """One promise.

    Attributes:
        text: The promise in words.
        bound: Value it must reach or stay under.
        at_least: Whether `bound` is a floor instead of a ceiling.
        measure: Value of a run; None where the run did not measure it.
        limit: Key of the limit it runs into; empty where none is measured.
    """

    text: str
    bound: float
    measure: Callable[[Rows], float | None]
    limit: str = ""
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Whether a measured value keeps the promise."""
        return value >= self.bound if self.at_least else value < self.bound


def _value(key: str) -> Callable[[Rows], float | None]:
    return lambda rows: rows[key].values.get(US) if key in rows else None


def _against(key: str, peer: str) -> Callable[[Rows], float | None]:
    def measure(rows: Rows) -> float | None:
        row = rows.get(key)
        return row.advantage(peer) if row and {US, peer} <= set(row.values) else None

    return measure


def _quotient(above: str, below: str) -> Callable[[Rows], float | None]:
    def measure(rows: Rows) -> float | None:
        values = [_value(key)(rows) for key in (above, below)]
        return values[0] / values[1] if values[0] is not None and values[1] else None

    return measure


TARGETS = (
    Target("insert_many, records/s", 200_000, _value("insert_many"), "write_rows", at_least=True),
    Target("insert_many, times Lance's rate", 1, _against("insert_many", "lance"), at_least=True),
    Target("insert_many, peak memory beyond the raw size, MB", 300, _value("peak_memory")),
    Target("durable insert p50, ms", 2, _value("insert_p50"), "catalog_commit"),
    Target("point get p50, ms", 0.7, _value("get_p50"), "catalog_lookup"),
    Target("point get, times Lance's speed (by id)", 1, _against("get_p50", "lance"), at_least=True),
    Target("256 random ids, ms", 5, _value("get_many"), "catalog_lookup_256"),
    Target("256 random ids, times Lance's speed (by id)", 1, _against("get_many", "lance"), at_least=True),
    Target("1 MB get, times Lance's speed (by id)", 3, _against("large_p50", "lance"), "copy_1mb", at_least=True),
    Target("metadata filter over 1,000,000, counted, ms", 20, _value("filter_count"), "catalog_filter"),
    Target("metadata filter over 1,000,000, with its tensors, ms", 20, _value("filter_query"), "catalog_filter"),
    Target("last page against the first, times", 2, _quotient("page_last", "page_first")),
    Target("import beyond torch, ms", 200, _value("import"), "import_duckdb"),
    Target("stored payloads / raw, lossless", 0.85, _value("payloads"), "entropy"),
    Target("whole folder / raw, with metadata and index", 0.85, _value("stored"), "entropy"),
)


def judge(rows: Rows) -> list[dict[str, str | float | bool]]:
    """Compare what a run measured with every target that it covers."""
    measured = ((target, target.measure(rows)) for target in TARGETS)
    return [
        {"target": target.text, "bound": target.bound, "measured": value, "met": target.met(value)}
        for target, value in measured
        if value is not None
    ]


def format_targets(rows: Rows, limits: Mapping[str, Limit]) -> str:
    """Lay out the verdicts, each beside the limit it runs into."""
    lines = [["target", "asked", "measured", "verdict", "limit"]]
    for target in TARGETS:
        value = target.measure(rows)
        if value is not None:
            asked = f"{'>=' if target.at_least else '<'} {format_number(target.bound)}"
            limit = str(limits[target.limit]) if target.limit in limits else ""
            lines.append([target.text, asked, format_number(value), "met" if target.met(value) else "NOT MET", limit])
    return format_table(lines) if len(lines) > 1 else "no target covered by this run"
