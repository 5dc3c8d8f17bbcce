"""Tensors for the tests of weights."""

import torch


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return normal float32 values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def nudged(tensor: torch.Tensor, by: float = 1e-4, seed: int = 1) -> torch.Tensor:
    """Return a tensor that a little training changed everywhere."""
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))
    return (tensor.float() + by * noise).to(tensor.dtype)
