"""Quantizer ``nf4``: NormalFloat4, the 16 quantiles of a normal distribution that QLoRA uses.

Source of the levels: Dettmers, Pagnoni, Holtzman and Zettlemoyer, "QLoRA: Efficient Finetuning of Quantized LLMs",
2023, arXiv 2305.14314, appendix E. The scale is the largest magnitude of the group.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding import kernels
from tensordb.encoding.quantizers.floats import Bytes, Floats
from tensordb.encoding.quantizers.granularity import Granularity, PerGroup
from tensordb.encoding.quantizers.mapping import Fitted
from tensordb.encoding.quantizers.scaled import Scaled, ScaleDtype, inverse_of, magnitudes
from tensordb.encoding.quantizers.sharing import ParameterMap, Stretch

CODE_BOOK = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# Codes above 15 do not occur.
_LEVELS = np.array(CODE_BOOK + (0.0,) * 240, np.float32)
_EDGES = ((_LEVELS[1:16].astype(np.float64) + _LEVELS[:15]) / 2).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Nf4(Scaled):
    """4-bit codes of normally distributed values, one a byte until they are packed.

    Attributes:
        granularity: Which elements share a scale; groups of 64 by default.
        scale_dtype: ``"float32"`` or ``"bfloat16"``.
    """

    id: ClassVar[int] = 5
    name: ClassVar[str] = "nf4"
    granularity: Granularity = field(default_factory=lambda: PerGroup(64))
    scale_dtype: ScaleDtype = "float32"

    def __post_init__(self) -> None:
        self._check()

    @property
    def codes_dtype(self) -> str:
        """uint8, of which 16 values are used."""
        return "uint8"

    @property
    def code_bits(self) -> int:
        """Four."""
        return 4

    def levels(self) -> NDArray[np.float32]:
        """Return the code book."""
        return _LEVELS

    def fit(self, values: Floats, where: ParameterMap, dtype: str) -> Fitted:
        """Return the largest magnitudes."""
        return Fitted((self._steps(magnitudes(*self._extremes(values, where)), 1),))

    def to_codes(self, values: Floats, near: Stretch) -> Bytes:
        """Return the code of the nearest level, of the lower one half way between two."""
        edges = _EDGES.astype(values.dtype)
        loops = kernels.ready_to_scale(values.nbytes) if near.where.inner > 1 and values.flags.aligned else None
        if loops is not None:
            out = np.empty(values.size, np.uint8)
            loops.nearest[values.dtype.name](values, near.parameters[0], edges, *near.places, out)
            return out
        scaled = values.reshape(near.shape) * inverse_of(near.spread()[0], values.dtype)
        return np.searchsorted(edges, scaled.reshape(-1)).astype(np.uint8)
