"""When a quantizer is applied, and what is noted when it is not. Lossless is always the way out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from tensordb.encoding.presets import CompressionConfig
from tensordb.encoding.quantizers import Exceptions, NotQuantizableError, Quantizer
from tensordb.encoding.quantizers.floats import FLOAT_DTYPES
from tensordb.errors import InvalidInputError
from tensordb.model import MeasuredError, TensorSpec
from tensordb.tensors import byte_view, dtype_from_name, nbytes_of, spec_of

SMALLEST_QUANTIZED = 16
"""Elements of a tensor, or of a page's record, below which it stays lossless."""


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """What is to be stored of a tensor: the quantizer's codes and parameters, or the tensor itself.

    Attributes:
        spec: The original's.
        page: Whether dimension 0 counts records.
        codes: Same shape as the original.
        quantizer: None when lossless.
        parameters: float32 or bfloat16, in the quantizer's order.
        error: What was lost.
        note: Why a quantizer was asked for and not applied.
        exceptions: Elements that are stored exactly beside the codes.
    """

    spec: TensorSpec
    page: bool
    codes: torch.Tensor
    quantizer: Quantizer | None = None
    parameters: tuple[torch.Tensor, ...] = ()
    error: MeasuredError = field(default_factory=MeasuredError)
    note: str | None = None
    exceptions: Exceptions | None = None

    @property
    def codes_dtype(self) -> str:
        """Dtype of the codes by torch's name."""
        return self.quantizer.codes_dtype if self.quantizer else self.spec.dtype

    def arrays(self) -> list[tuple[NDArray[np.uint8], int]]:
        """Return what is stored beside the codes, in its order: bytes, and how many an item has."""
        arrays = [(byte_view(each), each.element_size()) for each in self.parameters]
        if self.exceptions is not None:
            both = (self.exceptions.positions, self.exceptions.values)
            arrays += [(each.view(np.uint8), each.itemsize) for each in both]
        return arrays


def quantize_where_possible(tensor: torch.Tensor, config: CompressionConfig, page: bool) -> Stored:
    """Return the tensor quantized as `config` asks, or lossless with a note that says why."""
    spec = spec_of(tensor)
    quantizer = config.quantizer()
    if quantizer is None:
        return Stored(spec, page, tensor)
    reason = _obstacle(spec, page, quantizer)
    if reason is None:
        try:
            quantized = quantizer.quantize(tensor, page=page)
        except NotQuantizableError as error:
            reason = str(error)
        else:
            return Stored(
                spec,
                page,
                quantized.codes,
                quantizer,
                quantized.parameters,
                quantized.error,
                exceptions=quantized.exceptions,
            )
    return Stored(spec, page, tensor, note=reason)


def _obstacle(spec: TensorSpec, page: bool, quantizer: Quantizer) -> str | None:
    """Return why a tensor of this spec is not quantized, or None."""
    if spec.dtype not in FLOAT_DTYPES:
        return f"{spec.dtype} is not quantized; stored lossless"
    record = spec.shape[1:] if page else spec.shape
    if 0 in spec.shape or math.prod(record) < SMALLEST_QUANTIZED:
        return f"fewer than {SMALLEST_QUANTIZED} elements are not quantized; stored lossless"
    try:
        where = quantizer.parameter_map(spec, page)
    except InvalidInputError as error:
        return f"{error}; stored lossless"
    parameter = dtype_from_name(quantizer.parameter_dtype).itemsize
    needed = math.prod(spec.shape) * quantizer.code_bits / 8 + quantizer.parameter_count * parameter * where.total
    if needed >= nbytes_of(spec):
        return f"{quantizer.name} would not make {spec.dtype} of shape {list(record)} smaller; stored lossless"
    return None
