"""Tensors for the model: of few numbers, so that equal ones meet, and of every kind."""

from __future__ import annotations

import torch

from tests.storage.tensors import bits, sample

DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.int16,
)
SHAPES = ((3,), (6, 4), (), (0,), (40, 50), (90, 70), (20_000,), (2, 0, 3))
EXACT = ("lossless", "none", "fast")
LOSSY = ("balanced", "maximum", "int8_only", "q6", "bf16_only", "q4")
PRESETS = EXACT + LOSSY


def tensor_of(n: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the tensor of a number: random values, random bits (with NaNs), or a view that is not contiguous."""
    if n % 4 == 3 or dtype == torch.bool:
        return sample(dtype, *shape, seed=n)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(n)) * 10
    tensor = values.to(dtype) if dtype.is_floating_point or dtype.is_complex else values.abs().to(dtype)
    if n % 4 == 2 and tensor.ndim == 2 and shape[0] == shape[1]:
        return tensor.t()
    return tensor


def assert_within(read: torch.Tensor, given: torch.Tensor, quantization: str, max_abs: float) -> None:
    """Check that what is read is what was given: bit for bit, or as near as what is stored says of itself."""
    assert (read.dtype, read.shape) == (given.dtype, given.shape)
    if quantization == "none":
        assert bits(read) == bits(given)
        return
    found, wanted = read.to(torch.float64), given.to(torch.float64)
    finite = wanted.isfinite()
    assert torch.equal(found[~finite].nan_to_num(1, 2, 3), wanted[~finite].nan_to_num(1, 2, 3))
    worst = (found[finite] - wanted[finite]).abs().max().item() if finite.any() else 0.0
    assert worst <= max_abs * (1 + 1e-6), (worst, max_abs, quantization)
