"""How values show themselves: as HTML in a notebook, as text in a terminal.

Names are data of somebody else: HTML is escaped, and text holds no character that a terminal would obey.
"""

from __future__ import annotations

import html
from collections.abc import Sequence


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str | None = None) -> str:
    """Return an HTML table with every cell escaped."""
    top = "".join(f"<th>{html.escape(each)}</th>" for each in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def one_line(text: str) -> str:
    """Return text as one line; control and invisible characters are escaped."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode() for each in text
    )


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of text whose first column stands to the left, the others to the right."""
    cells = [[one_line(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(head))]
    lines = []
    for first, *others in cells:
        right = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *right]).rstrip())
    return "\n".join(lines)
