"""How many elements share one scale: per tensor, row, channel or group, in the forms users and payloads have for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from tensordb.errors import FormatError, InvalidInputError, UnsupportedFormatError


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole tensor."""


@dataclass(frozen=True, slots=True)
class PerChannel:
    """One scale for each position along `axis` (negative counts from the end)."""

    axis: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.axis, bool) or not isinstance(self.axis, int) or not -64 <= self.axis < 64:
            raise InvalidInputError(f"axis {self.axis!r} is no dimension; use an int from -64 to 63")


@dataclass(frozen=True, slots=True)
class PerGroup:
    """One scale for each `size` consecutive elements in row-major order; the last group may be shorter."""

    size: int = 128

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not 8 <= self.size <= 1 << 20:
            raise InvalidInputError(f"group size {self.size!r} cannot be used; use an int from 8 to {1 << 20}")


@dataclass(frozen=True, slots=True)
class PerRow:
    """One scale for each position of dimension 0 where that has at least 64 elements, else one for the tensor.

    A tensor of fewer than two dimensions is one row.
    """


Granularity: TypeAlias = PerTensor | PerChannel | PerGroup | PerRow
GRANULARITIES: dict[str, Any] = {
    "per_tensor": PerTensor,
    "per_channel": PerChannel,
    "per_group": PerGroup,
    "per_row": PerRow,
}
"""By name; their order is the number that a payload stores."""


def granularity_to_dict(granularity: Granularity) -> dict[str, Any]:
    """Return a granularity as JSON values, such as ``{"granularity": "per_channel", "axis": 0}``."""
    match granularity:
        case PerTensor():
            return {"granularity": "per_tensor"}
        case PerChannel(axis):
            return {"granularity": "per_channel", "axis": axis}
        case PerGroup(size):
            return {"granularity": "per_group", "size": size}
        case PerRow():
            return {"granularity": "per_row"}


def granularity_from(value: Any = "per_tensor", **detail: Any) -> Granularity:
    """Return a granularity from its value, its name with ``axis`` or ``size``, or a group size as an int.

    >>> granularity_from("per_group", size=64) == granularity_from(64) == PerGroup(64)
    True
    """
    if isinstance(value, PerTensor | PerChannel | PerGroup | PerRow) and not detail:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and not detail:
        return PerGroup(value)
    if not isinstance(value, str) or value not in GRANULARITIES:
        raise InvalidInputError(
            f"unknown granularity {value!r}; use one of: {', '.join(GRANULARITIES)}, or a group size"
        )
    known = GRANULARITIES[value].__dataclass_fields__
    if unknown := [key for key in detail if key not in known]:
        raise InvalidInputError(f"granularity {value} has no {unknown[0]!r}; it has: {', '.join(known) or 'nothing'}")
    built: Granularity = GRANULARITIES[value](**detail)
    return built


def pack_granularity(granularity: Granularity) -> bytes:
    """Return its number and its axis or size (int32, else 0)."""
    kind = list(GRANULARITIES.values()).index(type(granularity))
    value = getattr(granularity, "axis", getattr(granularity, "size", 0))
    return bytes((kind,)) + int(value).to_bytes(4, "little", signed=True)


def unpack_granularity(data: bytes) -> Granularity:
    """Return the granularity that `pack_granularity` gave.

    Raises:
        FormatError: if there is none like this.
    """
    value = int.from_bytes(data[1:], "little", signed=True)
    kinds = list(GRANULARITIES.values())
    if len(data) != 5 or data[0] >= len(kinds):
        raise UnsupportedFormatError(
            f"payload has granularity {data.hex()}, unknown to this release; use a newer release"
        )
    kind = kinds[data[0]]
    try:
        built: Granularity = kind(value) if kind.__dataclass_fields__ else kind()
    except InvalidInputError as error:
        raise FormatError(f"payload has impossible quantizer parameters: {error}") from error
    return built
