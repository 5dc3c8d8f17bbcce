"""What errors say about names that are not there: those they may have been meant for, and some of those that are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

_SHOWN = 10


def meant(name: Any, names: Iterable[str]) -> str:
    """Return ``"; did you mean 'b'?"`` for the name that is most like one that is not there, or nothing.

    >>> meant("basline", ["other", "baseline"])
    "; did you mean 'baseline'?"
    """
    found = difflib.get_close_matches(name, list(names), 1) if isinstance(name, str) else []
    return f"; did you mean {found[0]!r}?" if found else ""


def listed(names: Sequence[Any]) -> str:
    """Return the last of some names, quoted, or ``"none"``."""
    shown = ", ".join(repr(each) for each in names[-_SHOWN:])
    return (f"…, {shown}" if len(names) > _SHOWN else shown) or "none"
