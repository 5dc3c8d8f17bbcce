"""Quantizer ``int8``: uniform 8-bit codes between the extremes of a tensor, of each channel or of each group.

Affine codes count steps up from the minimum, which is stored as it is: no zero point that could be clamped, so that
values far from zero keep their detail. Symmetric codes count steps from zero. The error of a value is at most half a
step: range / 510 affine, largest magnitude / 254 symmetric.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding.quantizers.base import NotQuantizableError, Quantizer, _records
from tensordb.encoding.quantizers.floats import Bytes, Floats
from tensordb.encoding.quantizers.granularity import Granularity, ParameterMap, PerChannel, PerGroup, PerTensor
from tensordb.errors import FormatError, InvalidInputError
from tensordb.model import TensorSpec

_MODES = ("affine", "symmetric")
_SMALLEST_STEP = float(np.finfo(np.float32).tiny)
_LARGEST_RANGE = 3e38


@dataclass(frozen=True, slots=True)
class Int8(Quantizer):
    """Uniform 8-bit codes with float32 scales.

    Attributes:
        granularity: Which elements share a scale.
        mode: ``"affine"``: uint8 codes, value = minimum + code * scale. ``"symmetric"``: int8 codes from -127 to 127,
            value = code * scale.
    """

    id: ClassVar[int] = 3
    name: ClassVar[str] = "int8"
    granularity: Granularity = field(default_factory=PerTensor)
    mode: Literal["affine", "symmetric"] = "affine"

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise InvalidInputError(f"int8 has no mode {self.mode!r}; use one of: {', '.join(_MODES)}")
        if not isinstance(self.granularity, PerTensor | PerChannel | PerGroup):
            raise InvalidInputError(
                f"int8 has no granularity {self.granularity!r}; use PerTensor(), PerChannel(axis) or PerGroup(size)"
            )

    @property
    def codes_dtype(self) -> str:
        """uint8 for affine codes, int8 for symmetric ones."""
        return "uint8" if self.mode == "affine" else "int8"

    @property
    def parameter_count(self) -> int:
        """Scales; and minima for affine codes."""
        return 2 if self.mode == "affine" else 1

    def parameter_map(self, spec: TensorSpec, page: bool) -> ParameterMap:
        """Return the map of the granularity."""
        return ParameterMap.of(self.granularity, *_records(spec, page))

    def fit(self, values: Floats, where: ParameterMap) -> tuple[NDArray[np.float32], ...]:
        """Return ``(scales, minima)``, or ``(scales,)`` for symmetric codes."""
        low = where.reduce(values, np.minimum).astype(np.float64)
        high = where.reduce(values, np.maximum).astype(np.float64)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise NotQuantizableError("int8 cannot hold NaN or infinite values; stored lossless")
        with np.errstate(over="ignore", under="ignore"):
            if self.mode == "symmetric":
                return (_steps(np.maximum(np.abs(low), np.abs(high)), 127),)
            minima = low.astype(np.float32)
            # Rounded to float32 the minimum must not lie above a value, which would have no code.
            minima = np.where(minima > low, np.nextafter(minima, np.float32(-np.inf)), minima)
            return (_steps(high - minima, 255), minima)

    def to_codes(self, values: Floats, parameters: tuple[Floats, ...]) -> Bytes:
        """Return the nearest code of each value."""
        scale = parameters[0].astype(values.dtype)
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
        if self.mode == "symmetric":
            steps = np.rint(values * inverse)
            signed: Bytes = np.clip(steps, -127, 127, out=steps).astype(np.int8).reshape(-1).view(np.uint8)
            return signed
        steps = np.subtract(values, parameters[1], dtype=values.dtype)
        steps *= inverse
        np.rint(steps, out=steps)
        return np.clip(steps, 0, 255, out=steps).astype(np.uint8).reshape(-1)

    def to_values(self, codes: Bytes, parameters: tuple[Floats, ...], shape: tuple[int, int], dtype: Any) -> Floats:
        """Return the values of the codes."""
        signed = codes if self.mode == "affine" else codes.view(np.int8)
        values = signed.reshape(shape).astype(dtype)
        values *= parameters[0]
        if self.mode == "affine":
            values += parameters[1]
        return values

    def parameters(self) -> dict[str, Any]:
        """Return granularity and mode."""
        return {**granularity_to_dict(self.granularity), "mode": self.mode}

    def pack(self) -> bytes:
        """Return mode, granularity kind (a byte each) and axis or size (int32)."""
        match self.granularity:
            case PerTensor():
                kind, value = 0, 0
            case PerChannel(axis):
                kind, value = 1, axis
            case PerGroup(size):
                kind, value = 2, size
        return bytes((_MODES.index(self.mode), kind)) + value.to_bytes(4, "little", signed=True)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Return the quantizer that `pack` describes."""
        if len(data) != 6 or data[0] > 1 or data[1] > 2:
            raise FormatError(f"int8 has parameters {data.hex()}, unknown to this release; use a newer release")
        value = int.from_bytes(data[2:], "little", signed=True)
        kinds = (PerTensor, lambda: PerChannel(value), lambda: PerGroup(value))
        try:
            return cls(kinds[data[1]](), "symmetric" if data[0] else "affine")
        except InvalidInputError as error:
            raise FormatError(f"payload has impossible quantizer parameters: {error}") from error


def _steps(ranges: NDArray[np.float64], codes: int) -> NDArray[np.float32]:
    """Return the float32 step that covers each range with this many codes."""
    if ranges.max() > _LARGEST_RANGE:
        raise NotQuantizableError(f"int8 cannot span a range of {ranges.max():.3g}; stored lossless")
    steps = ranges / codes
    if ((steps > 0) & (steps < _SMALLEST_STEP)).any():
        raise NotQuantizableError("int8 cannot divide a range this small; stored lossless")
    return steps.astype(np.float32)


def granularity_to_dict(granularity: Granularity) -> dict[str, Any]:
    """Return a granularity as JSON values, such as ``{"granularity": "per_channel", "axis": 0}``."""
    match granularity:
        case PerTensor():
            return {"granularity": "per_tensor"}
        case PerChannel(axis):
            return {"granularity": "per_channel", "axis": axis}
        case PerGroup(size):
            return {"granularity": "per_group", "size": size}


def granularity_from(value: Any = "per_tensor", **detail: Any) -> Granularity:
    """Return a granularity from its value, its name with ``axis`` or ``size``, or a group size as an int.

    >>> granularity_from("per_group", size=64) == granularity_from(64) == PerGroup(64)
    True
    """
    kinds: dict[str, Any] = {"per_tensor": PerTensor, "per_channel": PerChannel, "per_group": PerGroup}
    if isinstance(value, PerTensor | PerChannel | PerGroup) and not detail:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and not detail:
        return PerGroup(value)
    if not isinstance(value, str) or value not in kinds:
        raise InvalidInputError(f"unknown granularity {value!r}; use one of: {', '.join(kinds)}, or a group size")
    known = kinds[value].__dataclass_fields__
    if unknown := [key for key in detail if key not in known]:
        raise InvalidInputError(f"granularity {value} has no {unknown[0]!r}; it has: {', '.join(known) or 'nothing'}")
    built: Granularity = kinds[value](**detail)
    return built
