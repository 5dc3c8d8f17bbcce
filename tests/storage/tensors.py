"""Tensors of every kind that can be stored, and comparison by bits."""

import torch

_NAMES = (
    *("float32", "float64", "float16", "bfloat16"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    *("complex32", "complex64", "complex128"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"),
)
DTYPES = [getattr(torch, name) for name in _NAMES if hasattr(torch, name)]


def sample(dtype: torch.dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    """Return random values with random bits where every bit pattern is a value."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    if dtype == torch.complex32:
        return torch.view_as_complex(torch.randn((*shape, 2), generator=generator).half())
    count = int(torch.tensor(shape).prod()) if shape else 1
    raw = torch.randint(0, 256, (count * dtype.itemsize,), generator=generator, dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def hardly_compressible(elements: int) -> torch.Tensor:
    """Return float32 of random bits, but for one bit of the exponent that is mostly set: 1 % could be saved."""
    words = sample(torch.int32, elements)
    often = torch.rand(elements, generator=torch.Generator().manual_seed(1)) < 0.85
    return torch.where(often, words | 1 << 28, words & ~(1 << 28)).view(torch.float32)


def bits(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor in row-major order."""
    if tensor.dtype == torch.complex32:
        tensor = torch.view_as_real(tensor)
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Tell whether dtype, shape and every bit agree."""
    return left.dtype == right.dtype and left.shape == right.shape and bits(left) == bits(right)
