"""Frozen values that the rooms hand to each other. No behaviour beyond what follows from the fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor is without its values: dtype by torch's name (``"float32"``) and shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MeasuredError:
    """What a quantizer lost, measured over the values that have codes; exceptions are exact, and not counted.

    Attributes:
        relative_l2: L2 norm of the difference over the L2 norm of the original; 0.0 when lossless.
        max_abs: Largest absolute difference of one element.
    """

    relative_l2: float = 0.0
    max_abs: float = 0.0

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio in dB; infinite when lossless."""
        if self.relative_l2 == 0.0:
            return math.inf
        return -20.0 * math.log10(self.relative_l2)


@dataclass(frozen=True, slots=True)
class Encoding:
    """What was applied to a stored tensor, read from the stored bytes and never from today's settings.

    Attributes:
        compression: Filter and codec, such as ``"planes+zstd"``, ``"zstd"``, ``"lz4"`` or ``"none"``.
        compression_parameters: Parameters of the codec, such as ``{"level": 3}``.
        quantization: Name of the quantizer, ``"none"`` when lossless.
        quantization_parameters: Parameters of the quantizer, such as ``{"granularity": "per_channel", "axis": 0}``.
        original_nbytes: Bytes of the raw tensor.
        stored_nbytes: Everything stored for it: header, scales, checksums and padding included. For a row of a
            page, the page's bytes divided among its rows.
        error: What the quantizer lost.
        note: Why something other than what was asked for was applied, or None.
    """

    compression: str
    quantization: str
    original_nbytes: int
    stored_nbytes: int
    compression_parameters: Mapping[str, Any] = field(default_factory=dict)
    quantization_parameters: Mapping[str, Any] = field(default_factory=dict)
    error: MeasuredError = MeasuredError()
    note: str | None = None

    @property
    def ratio(self) -> float:
        """Original over stored bytes; 1.0 for an empty tensor."""
        return self.original_nbytes / self.stored_nbytes if self.stored_nbytes and self.original_nbytes else 1.0
