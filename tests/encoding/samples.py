"""Tensors and configurations that the tests of this room share."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import strategies as st

from tensordb.encoding import COMPRESSION_PRESETS, CompressionConfig, PayloadReader, encode
from tensordb.model import TensorSpec
from tensordb.tensors import byte_view, dtype_from_name, dtype_name, nbytes_of, snapshot, view_of

DTYPES = [
    dtype_from_name(name)
    for name in (
        "float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2",
        "float8_e5m2fnuz", "float8_e8m0fnu", "complex32", "complex64", "complex128", "int8", "int16", "int32", "int64",
        "uint8", "uint16", "uint32", "uint64", "bool",
    )
]  # fmt: skip
CODECS = [
    CompressionConfig(codec, compression_kwargs=kwargs)
    for codec, kwargs in (
        ("none", {}), ("auto", {}), ("best", {}), ("zstd", {"level": 1}), ("zstd", {"filter": "planes"}), ("lz4", {}),
        ("lz4", {"mode": "hc", "filter": "planes"}), ("zstd", {"filter": "narrow"}), ("lz4", {"filter": "bit_pack"}),
        ("zstd", {"filter": "stride_delta"}), ("lz4", {"filter": "zero_bitmap"}), ("pcodec", {"level": 4}),
        ("gzip", {}), ("zlib", {"level": 1}), ("lzma", {"level": 0}),
    )
]  # fmt: skip
INT8_KWARGS = [
    {"granularity": granularity, "mode": mode} | detail
    for (granularity, detail), mode in itertools.product(
        (("per_tensor", {}), ("per_channel", {"axis": -1}), ("per_group", {"size": 24})), ("affine", "symmetric")
    )
]


def random_bits(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """A tensor of any bit patterns, NaN payloads included; bools are 0 and 1."""
    spec = TensorSpec(dtype_name(dtype), shape)
    high = 2 if dtype == torch.bool else 256
    return view_of(np.random.default_rng(seed).integers(0, high, nbytes_of(spec)).astype(np.uint8), spec)


def normal(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Normally distributed values of a float dtype."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05).to(dtype)


def payload_of(tensor: torch.Tensor, config: CompressionConfig | str, *, page: bool = False) -> bytes:
    """The payload of any tensor under a configuration or the preset of this name."""
    config = COMPRESSION_PRESETS[config] if isinstance(config, str) else config
    encoded = encode(snapshot(tensor), config, page=page)
    payload = b"".join(encoded.buffers)
    assert len(payload) == encoded.nbytes == encoded.encoding.stored_nbytes
    return payload


def stored(tensor: torch.Tensor, config: CompressionConfig | str, *, page: bool = False) -> PayloadReader:
    """The reader of a payload."""
    return PayloadReader(payload_of(tensor, config, page=page))


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits."""
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    return bool((byte_view(snapshot(left)) == byte_view(snapshot(right))).all())


def shapes(max_dims: int = 4, max_side: int = 9) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes from 0-d on, empty ones included."""
    return st.lists(st.integers(0, max_side), max_size=max_dims).map(tuple)
