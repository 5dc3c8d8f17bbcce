"""Plain values as JSON text; apart from `documents`, so that who needs no more than this does not load torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_MOST_BITS = 2_000  # fewer decimal digits than the lowest limit that may be set for them


def json_of(value: Any) -> str:
    """Return a plain value as JSON; a number of so many digits that Python refuses to write them is hexadecimal text.

    >>> json_of([1, 10**5000])[:12]
    '[1, "0x31e20'
    """
    try:
        return json.dumps(value, default=str)
    except ValueError:
        return json.dumps(_short(value), default=str)


def _short(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _short(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_short(each) for each in value]
    return hex(value) if type(value) is int and value.bit_length() > _MOST_BITS else value
