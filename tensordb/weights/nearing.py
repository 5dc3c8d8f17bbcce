"""Within a bound, the tensor that takes the fewest bits as a difference from a base.

Its values are the base's plus multiples of a power of two. Where a sum has the exponent of the base's value, the two
share the bits below that power, so that their difference, which is stored exactly, ends in zeros.
"""

from __future__ import annotations

import math

import torch

from tensordb import tensors
from tensordb.errors import InvalidInputError
from tensordb.model import MeasuredError

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_AT_ONCE = 1 << 20
"""Values worked on at a time, in float64."""


def near(tensor: torch.Tensor, base: torch.Tensor | None, max_error: float) -> tuple[torch.Tensor, MeasuredError]:
    """Return a tensor that nowhere differs from `tensor` by more than `max_error`, and by how much it does.

    Values that are not finite, or that no multiple reaches, stay as they are.

    Args:
        tensor: A snapshot of float16, bfloat16, float32 or float64.
        base: Of the same dtype and shape; None for zeros, from which the values are multiples of a power of two.
        max_error: Above 0.

    Raises:
        InvalidInputError: It has another dtype.
    """
    if tensor.dtype not in _DTYPES:
        raise InvalidInputError(
            f"max_error={max_error} is for tensors of {', '.join(str(each)[6:] for each in _DTYPES)}, this one is "
            f"{str(tensor.dtype)[6:]}; without max_error a delta is exact for every dtype"
        )
    result = tensors.empty(tensors.spec_of(tensor))
    step = 2.0 ** max(math.floor(math.log2(max_error)) + 1, -1022)
    lost = norm = worst = 0.0
    with torch.no_grad():
        known_flat = torch.zeros(1, dtype=tensor.dtype).expand(tensor.numel()) if base is None else base.reshape(-1)
        flat = (tensor.reshape(-1), known_flat, result.reshape(-1))
        for begin in range(0, tensor.numel(), _AT_ONCE):
            wanted, known, out = (each[begin : begin + _AT_ONCE] for each in flat)
            out.copy_(_near(wanted, known, step, max_error))
            exact = wanted.double()
            error = torch.where(out == wanted, 0.0, out.double() - exact).nan_to_num(0.0)
            lost += float(error.square().sum())
            norm += float(exact.square().nan_to_num(0.0, 0.0, 0.0).sum())
            worst = max(worst, float(error.abs().max()))
    return result, MeasuredError(math.sqrt(lost / norm) if lost and norm else 0.0, worst)


def _near(wanted: torch.Tensor, known: torch.Tensor, step: float, max_error: float) -> torch.Tensor:
    exact, base = wanted.double(), known.double()
    found = (base + torch.round((exact - base) / step) * step).to(wanted.dtype)
    within = (found.double() - exact).abs() <= max_error
    # A zero keeps its sign: it costs nothing, and what the bound says nothing about is not changed.
    return torch.where(within & (wanted != 0), found, wanted)
