"""Quantizers: float tensors to narrower codes and back, one file each, found by name or by the id in a payload.

>>> import torch
>>> quantizer = quantizer_named("int8", granularity=PerGroup(64))
>>> quantized = quantizer.quantize(torch.linspace(100.0, 101.0, 256))
>>> quantized.codes.dtype, quantizer.dequantize(quantized).dtype
(torch.uint8, torch.float32)
"""

from __future__ import annotations

from typing import Any

from tensordb.encoding.quantizers.base import NotQuantizableError, Quantized, Quantizer
from tensordb.encoding.quantizers.casts import Bf16, Fp16
from tensordb.encoding.quantizers.granularity import Granularity, PerChannel, PerGroup, PerTensor
from tensordb.encoding.quantizers.int8 import Int8, granularity_from, granularity_to_dict
from tensordb.errors import FormatError, InvalidInputError, UnknownPresetError

__all__ = [
    "QUANTIZER_NAMES",
    "Bf16",
    "Fp16",
    "Granularity",
    "Int8",
    "NotQuantizableError",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "Quantized",
    "Quantizer",
    "granularity_from",
    "granularity_to_dict",
    "quantizer_named",
    "quantizer_with_id",
]

_QUANTIZERS: dict[str, type[Quantizer]] = {known.name: known for known in (Fp16, Bf16, Int8)}
QUANTIZER_NAMES = ("none", *_QUANTIZERS)


def quantizer_named(name: str, **parameters: Any) -> Quantizer:
    """Return the quantizer called `name` with its parameters.

    Args:
        name: One of ``QUANTIZER_NAMES`` but ``"none"``, which needs no quantizer.
        parameters: For int8: ``granularity`` (a value, a name with ``axis`` or ``size``, or a group size), ``mode``.

    Raises:
        UnknownPresetError: if there is no such quantizer.
        InvalidInputError: if it has no such parameter or the value is out of range.
    """
    if name not in _QUANTIZERS:
        raise UnknownPresetError(f"unknown quantizer {name!r}; use one of: {', '.join(_QUANTIZERS)}")
    if name == "int8":
        return _int8(**parameters)
    if parameters:
        raise InvalidInputError(f"quantizer {name} has no parameter {next(iter(parameters))!r}; it has none")
    return _QUANTIZERS[name]()


def _int8(granularity: Any = "per_tensor", mode: Any = "affine", **detail: Any) -> Int8:
    return Int8(granularity_from(granularity, **detail), mode)


def quantizer_with_id(number: int, packed: bytes) -> Quantizer:
    """Return the quantizer that a payload names.

    Raises:
        FormatError: if this release does not know it or its parameters.
    """
    for known in _QUANTIZERS.values():
        if known.id == number:
            return known.unpack(packed)
    raise FormatError(f"payload uses quantizer {number}, unknown to this release; read it with a newer release")
