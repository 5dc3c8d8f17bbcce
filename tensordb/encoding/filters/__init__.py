"""Filters: reversible rearrangements that show a codec the structure in a tensor's bytes, one file each."""

from __future__ import annotations

from tensordb.encoding.filters.base import Filter
from tensordb.encoding.filters.bit_pack import BitPack
from tensordb.encoding.filters.constant import Constant
from tensordb.encoding.filters.delta import Delta
from tensordb.encoding.filters.narrow import Narrow
from tensordb.encoding.filters.none import NoFilter
from tensordb.encoding.filters.planes import Planes, plane_width
from tensordb.encoding.filters.stride_delta import StrideDelta
from tensordb.encoding.filters.zero_bitmap import ZeroBitmap
from tensordb.errors import UnsupportedFormatError

__all__ = [
    "FILTER_NAMES",
    "BitPack",
    "Constant",
    "Delta",
    "Filter",
    "Narrow",
    "NoFilter",
    "Planes",
    "StrideDelta",
    "ZeroBitmap",
    "filter_with_id",
    "plane_width",
]

_FILTERS: dict[int, type[Filter]] = {
    known.id: known for known in (NoFilter, Planes, Constant, BitPack, Narrow, StrideDelta, ZeroBitmap, Delta)
}
FILTER_NAMES = tuple(known.name for known in _FILTERS.values() if known not in (Constant, Delta))
"""Those that a config can ask for; the others are found by themselves."""


def filter_with_id(number: int, packed: bytes, dtype: str) -> Filter:
    """Return the filter that a payload names, for codes of this dtype.

    Raises:
        FormatError: if this release does not know it or its parameters.
    """
    known = _FILTERS.get(number)
    if known is None:
        raise UnsupportedFormatError(
            f"payload uses filter {number}, unknown to this release; read it with a newer release"
        )
    return known.unpack(packed, dtype)
