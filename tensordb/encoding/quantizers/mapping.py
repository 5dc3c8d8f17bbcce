"""What a quantizer does with values: maps them to codes and back, elementwise, with the parameters that it fitted.

Cutting tensors into ranges, finding exceptions and measuring the error is done in measuring.py, the same way for all.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding.quantizers.floats import Bytes, Floats, from_working, working_dtype
from tensordb.encoding.quantizers.granularity import PerTensor
from tensordb.encoding.quantizers.sharing import ParameterMap, Stretch
from tensordb.errors import InvalidInputError
from tensordb.model import TensorSpec
from tensordb.tensors import dtype_from_name


class NotQuantizableError(InvalidInputError):
    """The quantizer cannot represent these values within its bound; store the tensor lossless."""


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What a quantizer found for a tensor.

    Attributes:
        parameters: ``float32[where.total]`` each, of values that the stored dtype of parameters holds exactly.
        bounds: ``float64[where.total]``: the largest error allowed, None where the codes need no such check.
    """

    parameters: tuple[NDArray[np.float32], ...] = ()
    bounds: NDArray[np.float64] | None = None


class CodeMap(ABC):
    """Float values to codes and parameters. `id` is what a payload stores for it and never changes."""

    id: ClassVar[int]
    name: ClassVar[str]
    relative_limit: ClassVar[float] = math.inf
    """Largest relative L2 error of a record; more means that the values are outside the range of the codes."""
    largest: ClassVar[float] = math.inf
    """Largest magnitude that has a code; NaN and whatever is larger is an exception. Infinity: all has a code."""

    @property
    @abstractmethod
    def codes_dtype(self) -> str:
        """Dtype of the codes by torch's name."""

    @property
    def code_bits(self) -> int:
        """Bits of a code that vary; less than its dtype has where codes can be packed."""
        return 8 * dtype_from_name(self.codes_dtype).itemsize

    @property
    def parameter_count(self) -> int:
        """How many parameter arrays there are."""
        return 0

    @property
    def parameter_dtype(self) -> str:
        """Dtype in which parameters are stored: float32 or bfloat16."""
        return "float32"

    def parameter_map(self, spec: TensorSpec, page: bool) -> ParameterMap:
        """Return which parameter belongs to which element."""
        return ParameterMap.of(PerTensor(), *records_of(spec, page))

    def fit(self, values: Floats, where: ParameterMap, dtype: str) -> Fitted:
        """Return the parameter arrays for all values, held in working precision, of a tensor of this dtype.

        Raises:
            NotQuantizableError: if the values cannot be represented.
        """
        return Fitted()

    @abstractmethod
    def to_codes(self, values: Floats, near: Stretch) -> Bytes:
        """Return the bytes of the codes of ``values[n]``, none of them beyond `largest`."""

    @abstractmethod
    def to_values(self, codes: Bytes, near: Stretch, out: Floats) -> None:
        """Write the values of codes to ``out[n]``, which has the working dtype."""

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """Return the configuration as JSON values."""

    @abstractmethod
    def pack(self) -> bytes:
        """Return the configuration as a payload stores it."""

    @classmethod
    @abstractmethod
    def unpack(cls, data: bytes) -> Self:
        """Return the quantizer whose `pack` gave `data`."""

    def restore(self, codes: Bytes, near: Stretch, dtype: str, out: Bytes) -> None:
        """Write the bytes, in the original dtype, of the values that codes stand for.

        Args:
            codes: Bytes of codes.
            near: Where they are, with their parameters.
            dtype: The original's.
            out: Where to put them.
        """
        working = np.dtype(working_dtype(dtype))
        direct = dtype == working.name and out.view(working).flags.aligned
        values = out.view(working) if direct else np.empty(near.stop - near.start, working)
        # NaN, infinities and denormals are values like others here.
        with np.errstate(all="ignore"):
            self.to_values(codes, near, values)
        if not direct:
            out[:] = from_working(values, dtype)


def records_of(spec: TensorSpec, page: bool) -> tuple[tuple[int, ...], int]:
    """Return the shape that is quantized by itself and how often it is there."""
    return (spec.shape[1:], spec.shape[0]) if page else (spec.shape, 1)
