"""``auto`` finds what a tensor is made of, and is never behind plain zstd."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import zstandard

from tensordb.encoding import CompressionConfig, PayloadReader, encode, get_compression_preset
from tensordb.encoding.candidates import every
from tensordb.encoding.codecs import pcodec
from tensordb.encoding.plans import Codes
from tensordb.errors import MissingDependencyError
from tensordb.tensors import byte_view

from .samples import normal, payload_of, same_bits


def picture() -> torch.Tensor:
    """A smooth picture with some noise, ``uint8[2, 200, 300, 3]``."""
    y, x = torch.meshgrid(torch.arange(200), torch.arange(300), indexing="ij")
    waves = 100 + 60 * torch.sin(x / 40) + 50 * torch.cos(y / 25 + x / 90)
    noise = torch.randn(2, 200, 300, 3, generator=torch.Generator().manual_seed(0))
    return (waves[None, :, :, None] + 2 * noise).to(torch.uint8)


KINDS: dict[str, tuple[Callable[[], torch.Tensor], str, float]] = {
    "weights": (lambda: normal(torch.float32, (300, 400)), "planes+zstd", 1.17),
    "bfloat16 weights": (lambda: normal(torch.bfloat16, (300, 400)), "planes+zstd", 1.4),
    "float8 weights": (lambda: normal(torch.float32, (300, 400)).to(torch.float8_e4m3fn), "zstd", 1.2),
    "activations": (lambda: normal(torch.float32, (300, 400)).relu(), "zero_bitmap+zstd", 2.2),
    "float8 activations": (
        lambda: (normal(torch.float32, (300, 400)) - 0.05).relu().to(torch.float8_e4m3fn),
        "zero_bitmap+zstd",
        3,
    ),
    "token ids": (lambda: (normal(torch.float32, (400, 300)).abs() * 9e4).long() + 101, "narrow+zstd", 4.5),
    "far from zero": (lambda: torch.arange(50_000).long() % 97 + (1 << 40), "narrow+zstd", 100),
    "pictures": (picture, "stride_delta+zstd", 2),
    "masks": (lambda: normal(torch.float32, (300, 400)) > 0.05, "bit_pack+zstd", 9),
    "classes": (lambda: (normal(torch.float32, (300, 400)).abs() * 30).to(torch.uint8) % 16, "bit_pack+zstd", 2),
    "repeated rows": (lambda: normal(torch.float32, (3, 400)).repeat(100, 1), "planes+zstd", 50),
    "constants": (lambda: torch.full((300, 400), math.pi, dtype=torch.float64), "constant+zstd", 5000),
    "complex constants": (lambda: torch.full((300, 400), 1 + 2j), "constant+zstd", 5000),
    "noise": (lambda: torch.randint(0, 256, (100_000,), dtype=torch.uint8), "none", 0.99),
}


@pytest.mark.parametrize(("make", "expected", "least"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("page", [False, True])
def test_auto_finds_what_a_tensor_is_made_of(
    make: Callable[[], torch.Tensor], expected: str, least: float, page: bool
) -> None:
    tensor = make()
    reader = PayloadReader(payload_of(tensor, "lossless", page=page))
    if not page:  # the chunks of pages are small, and what is best for them can differ
        assert reader.encoding.compression == expected
        assert reader.encoding.ratio > least
    assert same_bits(reader.decode(), tensor)
    if tensor.dim() > 1:
        assert same_bits(reader.decode_rows([1, 0]), tensor[[1, 0]])


@pytest.mark.parametrize("make", [make for make, _, _ in KINDS.values()], ids=KINDS)
def test_auto_is_never_behind_zstd(make: Callable[[], torch.Tensor]) -> None:
    data = byte_view(make())
    compressor = zstandard.ZstdCompressor(level=3)
    plain = sum(len(compressor.compress(data[at : at + (1 << 18)])) for at in range(0, data.nbytes, 1 << 18))
    assert encode(make(), get_compression_preset("lossless")).nbytes <= plain * 1.001 + 200


@pytest.mark.parametrize("make", [make for make, _, _ in KINDS.values()], ids=KINDS)
def test_archive_is_never_larger_than_auto(make: Callable[[], torch.Tensor]) -> None:
    small = make()[..., :50].contiguous()
    sizes = {name: encode(small, get_compression_preset(name)).nbytes for name in ("archive", "lossless", "fast")}
    assert sizes["archive"] <= min(sizes.values()) * 1.003 + 20


def test_a_small_tensor_costs_at_most_48_bytes_of_container() -> None:
    for tensor in (torch.tensor(1.5), torch.randn(20), torch.randint(0, 256, (3, 40), dtype=torch.uint8)):
        assert encode(tensor, get_compression_preset("lossless")).nbytes <= byte_view(tensor).nbytes + 48


def test_without_pcodec_archive_takes_the_next_best_and_what_needs_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = normal(torch.bfloat16, (300, 400))
    written = payload_of(tensor, CompressionConfig("pcodec"))
    assert PayloadReader(payload_of(tensor, "archive")).encoding.compression == "pcodec"
    monkeypatch.setattr(pcodec, "wrapped", None)
    assert PayloadReader(payload_of(tensor, "archive")).encoding.compression == "planes+zstd"
    for needs in (
        lambda: encode(tensor, CompressionConfig("pcodec")),
        lambda: PayloadReader(written).decode(),
    ):
        with pytest.raises(MissingDependencyError, match=r"tensordb\[archive\]"):
            needs()


@pytest.mark.parametrize("shape", [(2, 1 << 33), (3, 2_000_000_000, 3), (4, 1 << 32)])
def test_the_strides_of_huge_images_fit_into_a_payload(shape: tuple[int, ...]) -> None:
    codes = Codes(np.arange(1 << 15, dtype=np.uint16).view(np.uint8), "uint8", shape, 0, 8, False)
    assert all(plan.filter.pack() is not None for plan in every(codes))
