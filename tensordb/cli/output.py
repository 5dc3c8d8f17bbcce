"""What the commands print: aligned tables for people, JSON for programs.

Names and metadata are data of somebody else. Nothing of them reaches a terminal but printable characters, and JSON
output is valid JSON whatever they hold.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import math
import re
import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from tensordb.display import one_line

_UNUSUAL = re.compile(r"[^ -~\n]")
_WIDTH = 100
_NARROWEST = 12
"""No column is cut below this many characters to make a table fit."""
_GAP = "  "
_UNITS = ("B", "kB", "MB", "GB", "TB")


def printable(value: Any) -> str:
    """Return a value as one line of printable text; control and invisible characters are escaped."""
    return one_line(value if isinstance(value, str) else _words(value))


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, width: int | None = None) -> str:
    """Return an aligned table: numbers to the right, text to the left, the widest columns cut until it fits.

    Args:
        head: Name of each column.
        rows: Values of each row, formatted by `printable`.
        width: Largest number of characters in a line (default: the terminal's, or 100).
    """
    cells = [[printable(value) for value in row] for row in (head, *rows)]
    widths = [max(_columns(row[place]) for row in cells) for place in range(len(head))]
    _fit(widths, (width or shutil.get_terminal_size((_WIDTH, 24)).columns) - len(_GAP) * (len(head) - 1))
    right = [bool(rows) and all(_is_number(row[place]) for row in rows) for place in range(len(head))]
    return "\n".join(_GAP.join(_cell(*each) for each in zip(row, widths, right, strict=True)).rstrip() for row in cells)


def to_json(value: Any) -> str:
    """Return a value as JSON: datetimes in ISO 8601, bytes in base64, NaN and infinities as null."""
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    return _UNUSUAL.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    """Return a character of JSON text, as an escape if a terminal would obey it: of those JSON escapes only a part."""
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1]


def size(nbytes: int) -> str:
    """Return a number of bytes with its decimal unit, such as ``115.0 kB``."""
    amount, unit = float(nbytes), 0
    while amount >= 999.95 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{amount:.1f} {_UNITS[unit]}" if unit else f"{nbytes} B"


def fields(metadata: Mapping[str, Any]) -> str:
    """Return metadata in one line, such as ``epoch=3 loss=0.25``."""
    return " ".join(f"{printable(name)}={printable(value)}" for name, value in metadata.items())


def _words(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e5 else f"{value:.12g}"
    if isinstance(value, dt.datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, list | tuple | Mapping):
        return json.dumps(_plain(value), ensure_ascii=False)
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, Mapping):
        return {str(_plain(name)): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if isinstance(value, dt.date | dt.time) else str(value)


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return value[:1].isdigit() or value in ("", "-")
    return value is None or isinstance(value, int | float | Decimal)


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    wide = sum(unicodedata.east_asian_width(each) in "WF" for each in text)
    return len(text) + wide - sum(unicodedata.combining(each) > 0 for each in text)


def _fit(widths: list[int], available: int) -> None:
    widths[:] = [min(each, max(available, _NARROWEST)) for each in widths]
    while sum(widths) > available and max(widths) > _NARROWEST:
        widths[widths.index(max(widths))] -= 1


def _cell(text: str, width: int, right: bool) -> str:
    if _columns(text) > width:
        text = _cut(text, width - 1) + "…"
    padding = " " * (width - _columns(text))
    return padding + text if right else text + padding


def _cut(text: str, width: int) -> str:
    """Return as much of a text as fits, in one pass: a name may have a million characters."""
    taken = 0
    for place, each in enumerate(text):
        taken += _columns(each)
        if taken > width:
            return text[:place]
    return text
