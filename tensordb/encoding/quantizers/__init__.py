"""Quantizers: float tensors to narrower codes and back, one file each, found by name or by the id in a payload.

>>> import torch
>>> quantizer = quantizer_named("int8", granularity=PerGroup(64))
>>> quantized = quantizer.quantize(torch.linspace(100.0, 101.0, 256))
>>> quantized.codes.dtype, quantizer.dequantize(quantized).dtype
(torch.uint8, torch.float32)
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from tensordb.encoding.quantizers.base import Quantizer
from tensordb.encoding.quantizers.casts import Bf16, Fp16
from tensordb.encoding.quantizers.exceptions import Exceptions
from tensordb.encoding.quantizers.fp8 import Fp8E4m3, Fp8E5m2
from tensordb.encoding.quantizers.granularity import (
    Granularity,
    PerChannel,
    PerGroup,
    PerRow,
    PerTensor,
    granularity_from,
    granularity_to_dict,
)
from tensordb.encoding.quantizers.int4 import Int4
from tensordb.encoding.quantizers.int8 import Int8
from tensordb.encoding.quantizers.mapping import NotQuantizableError
from tensordb.encoding.quantizers.measuring import Quantized
from tensordb.encoding.quantizers.nf4 import Nf4
from tensordb.encoding.quantizers.uniform import Uniform
from tensordb.errors import InvalidInputError, UnknownPresetError, UnsupportedFormatError

__all__ = [
    "QUANTIZER_NAMES",
    "Bf16",
    "Exceptions",
    "Fp8E4m3",
    "Fp8E5m2",
    "Fp16",
    "Granularity",
    "Int4",
    "Int8",
    "Nf4",
    "NotQuantizableError",
    "PerChannel",
    "PerGroup",
    "PerRow",
    "PerTensor",
    "Quantized",
    "Quantizer",
    "Uniform",
    "granularity_from",
    "granularity_to_dict",
    "quantizer_named",
    "quantizer_with_id",
]

_QUANTIZERS: dict[str, type[Quantizer]] = {
    known.name: known for known in (Fp16, Bf16, Int8, Int4, Nf4, Fp8E4m3, Fp8E5m2, Uniform)
}
QUANTIZER_NAMES = ("none", *_QUANTIZERS)


def quantizer_named(name: str, /, **parameters: Any) -> Quantizer:
    """Return the quantizer called `name` with its parameters.

    Args:
        name: One of ``QUANTIZER_NAMES`` but ``"none"``, which needs no quantizer.
        parameters: Those of its class, such as ``mode`` and ``scale_dtype`` for int8. ``granularity`` can be a value, a
            name with ``axis`` or ``size`` beside it, or a group size.

    Raises:
        UnknownPresetError: if there is no such quantizer.
        InvalidInputError: if it has no such parameter or the value is out of range.
    """
    if name not in _QUANTIZERS:
        raise UnknownPresetError(f"unknown quantizer {name!r}; use one of: {', '.join(_QUANTIZERS)}")
    kind = _QUANTIZERS[name]
    known = [each.name for each in fields(kind)]  # type: ignore[arg-type]  # each of them is a dataclass
    if "granularity" in known:
        parameters = _with_granularity(parameters)
    if unknown := [key for key in parameters if key not in known]:
        raise InvalidInputError(
            f"quantizer {name} has no parameter {unknown[0]!r}; it has {', '.join(known) or 'none'}"
        )
    return kind(**parameters)


def _with_granularity(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters with a granularity made of its name and what belongs to it."""
    detail = {key: parameters.pop(key) for key in ("axis", "size") if key in parameters}
    if detail or "granularity" in parameters:
        parameters["granularity"] = granularity_from(parameters.pop("granularity", "per_tensor"), **detail)
    return parameters


def quantizer_with_id(number: int, packed: bytes) -> Quantizer:
    """Return the quantizer that a payload names.

    Raises:
        FormatError: if this release does not know it or its parameters.
    """
    for known in _QUANTIZERS.values():
        if known.id == number:
            return known.unpack(packed)
    raise UnsupportedFormatError(
        f"payload uses quantizer {number}, unknown to this release; read it with a newer release"
    )
