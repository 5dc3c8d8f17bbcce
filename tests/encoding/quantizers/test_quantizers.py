"""Quantizers keep the error within its bound wherever the values lie, give the dtype back, and refuse the rest."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tensordb.encoding.quantizers import (
    Bf16,
    Fp16,
    Int8,
    NotQuantizableError,
    PerChannel,
    PerGroup,
    PerTensor,
    Quantizer,
    granularity_from,
    quantizer_named,
    quantizer_with_id,
)
from tensordb.errors import FormatError, InvalidInputError, UnknownPresetError

GRANULARITIES = [PerTensor(), PerChannel(0), PerChannel(1), PerChannel(-1), PerGroup(8), PerGroup(100)]
INT8 = [Int8(granularity, mode) for granularity in GRANULARITIES for mode in ("affine", "symmetric")]  # type: ignore[arg-type]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def round_trip(quantizer: Quantizer, tensor: torch.Tensor, page: bool = False) -> torch.Tensor:
    restored = quantizer.dequantize(quantizer.quantize(tensor, page=page))
    assert restored.dtype == tensor.dtype
    assert restored.shape == tensor.shape
    return restored


@pytest.mark.parametrize("quantizer", INT8, ids=repr)
@pytest.mark.parametrize("shape", [(8, 24), (5, 7, 11), (300, 400)], ids=str)
@pytest.mark.parametrize("page", [False, True])
def test_int8_errs_by_at_most_half_a_step(quantizer: Int8, shape: tuple[int, ...], page: bool) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 1
    if page:
        tensor = tensor.unsqueeze(1).expand(-1, 3, *shape[1:]).contiguous()
    quantized = quantizer.quantize(tensor, page=page)
    error = (quantizer.dequantize(quantized) - tensor).abs()
    spread = tensor.max() - tensor.min() if quantizer.mode == "affine" else 2 * tensor.abs().max()
    assert error.max() <= float(spread) / 254 / 2 * 1.001 + 1e-6
    assert quantized.error.max_abs == pytest.approx(float(error.max()))
    assert quantized.error.relative_l2 == pytest.approx(float(error.norm() / tensor.norm()), rel=1e-3)


@pytest.mark.parametrize("granularity", [PerChannel(0), PerChannel(1), PerGroup(16)], ids=repr)
def test_finer_granularity_keeps_small_channels_beside_large_ones(granularity: Any) -> None:
    tensor = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    tensor *= torch.logspace(-4, 4, 32)[:, None]
    if granularity == PerChannel(1):
        tensor = torch.randn(16, 32, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 4, 32)
    restored = round_trip(Int8(granularity), tensor)
    axis = 0 if granularity == PerChannel(1) else 1
    relative = (restored - tensor).norm(dim=axis) / tensor.norm(dim=axis)
    assert relative.max() < 0.02


@pytest.mark.parametrize(
    "quantizer",
    [Int8(), Int8(PerChannel(1)), Int8(PerGroup(10)), Int8(PerTensor(), "symmetric"), Fp16(), Bf16()],
    ids=repr,
)
def test_a_row_of_a_page_is_quantized_as_it_would_be_alone(quantizer: Quantizer) -> None:
    page = torch.randn(9, 4, 25, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 9)[:, None, None]
    together = round_trip(quantizer, page, page=True)
    alone = torch.stack([round_trip(quantizer, row) for row in page])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_values_in_100_to_101_keep_their_detail_through_int8(dtype: torch.dtype) -> None:
    tensor = torch.linspace(100, 101, 256, dtype=torch.float64).to(dtype)
    restored = round_trip(Int8(), tensor)
    grain = torch.finfo(dtype).eps * 101
    assert (restored.double() - tensor.double()).abs().max() <= 1 / 510 + grain


def test_a_range_of_exactly_255_is_exact_through_int8() -> None:
    tensor = torch.arange(256.0) - 17
    assert torch.equal(round_trip(Int8(), tensor), tensor)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.25, 100.5, 1e-30, -1e30])
@pytest.mark.parametrize("mode", ["affine", "symmetric"])
def test_constants_stay_constants_through_int8(value: float, mode: Any) -> None:
    tensor = torch.full((40,), value)
    restored = round_trip(Int8(PerTensor(), mode), tensor)
    assert torch.allclose(restored, tensor, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e-7, 1e7, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("quantizer", [Int8(), Int8(PerGroup(32)), Int8(PerTensor(), "symmetric"), Bf16()], ids=repr)
def test_scales_far_from_one_keep_the_relative_error(quantizer: Quantizer, dtype: torch.dtype, scale: float) -> None:
    tensor = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype) * scale
    restored = round_trip(quantizer, tensor)
    assert (restored - tensor).double().norm() / tensor.double().norm() < 0.015


def test_a_minimum_that_float32_cannot_hold_does_not_push_values_out_of_range() -> None:
    tensor = 1e8 + torch.linspace(0, 1e-3, 256, dtype=torch.float64)
    assert ((round_trip(Int8(), tensor) - tensor) / 1e8).abs().max() < 1e-7


@pytest.mark.parametrize("quantizer", [Fp16(), Bf16()], ids=repr)
def test_casts_keep_nan_and_infinities_where_they_are(quantizer: Quantizer) -> None:
    tensor = torch.randn(40, generator=torch.Generator().manual_seed(0))
    tensor[3], tensor[4], tensor[5] = math.nan, math.inf, -math.inf
    restored = round_trip(quantizer, tensor)
    assert torch.equal(restored.isnan(), tensor.isnan())
    assert torch.equal(restored.isinf(), tensor.isinf())
    assert restored[4] > 0 > restored[5]


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001, 0x7FC01234])
def test_no_nan_becomes_a_number_through_bf16(bits: int) -> None:
    tensor = torch.full((40,), bits - (1 << 32) if bits >> 31 else bits, dtype=torch.int32).view(torch.float32)
    assert round_trip(Bf16(), tensor).isnan().all()


@given(
    st.lists(
        st.floats(
            width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False, min_value=2**-100, max_value=2**100
        ),
        min_size=16,
        max_size=64,
    )
)
def test_bf16_rounds_as_torch_does(values: list[float]) -> None:
    tensor = torch.tensor(values)
    assert torch.equal(Bf16().quantize(tensor).codes, tensor.to(torch.bfloat16))


def test_fp16_rounds_as_torch_does() -> None:
    tensor = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Fp16().quantize(tensor).codes, tensor.to(torch.float16))


@pytest.mark.parametrize(
    ("quantizer", "value", "dtype"),
    [
        (Fp16(), 70000.0, torch.float32),
        (Fp16(), 70000.0, torch.bfloat16),
        (Fp16(), 1e-30, torch.float32),
        (Bf16(), 1e300, torch.float64),
        (Bf16(), 3.4e38, torch.float32),
        (Bf16(), 1e-300, torch.float64),
        (Int8(), 1e300, torch.float64),
        (Int8(), 1e-300, torch.float64),
        (Int8(), 1e-44, torch.float32),
        (Int8(), 3e38, torch.float32),
    ],
)
def test_values_outside_the_range_of_the_codes_are_refused(
    quantizer: Quantizer, value: float, dtype: torch.dtype
) -> None:
    tensor = torch.tensor([value, -value] * 20, dtype=dtype)
    with pytest.raises(NotQuantizableError, match="cannot"):
        quantizer.quantize(tensor)


@pytest.mark.parametrize("tensor", [torch.ones(3, dtype=torch.int64), torch.ones(0), torch.ones(3).to(torch.complex64)])
def test_only_floats_with_elements_are_quantized(tensor: torch.Tensor) -> None:
    with pytest.raises(InvalidInputError):
        Int8().quantize(tensor)


@pytest.mark.parametrize("quantizer", [Fp16(), Bf16(), *INT8], ids=repr)
def test_its_parameters_rebuild_it(quantizer: Quantizer) -> None:
    assert quantizer_named(quantizer.name, **quantizer.parameters()) == quantizer
    assert quantizer_with_id(quantizer.id, quantizer.pack()) == quantizer


def test_granularity_has_one_meaning_in_every_form() -> None:
    assert granularity_from("per_group", size=64) == granularity_from(64) == granularity_from(PerGroup(64))
    assert granularity_from("per_channel", axis=1) == PerChannel(1)
    assert granularity_from() == PerTensor()


@pytest.mark.parametrize(
    "parameters",
    [
        {"granularity": "per_block"},
        {"granularity": 4},
        {"mode": "odd"},
        {"granularity": "per_group", "axis": 1},
        {"granularity": "per_channel", "axis": 99},
        {"size": 3},
        {"granularity": None},
    ],
    ids=str,
)
def test_impossible_parameters_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        quantizer_named("int8", **parameters)


def test_an_unknown_quantizer_lists_those_that_exist() -> None:
    with pytest.raises(UnknownPresetError, match="fp16, bf16, int8"):
        quantizer_named("int3")
    for number, packed in (
        (77, b""),
        (1, b"x"),
        (3, b"x"),
        (3, b"\0\x02\0\0\0\0"),
        (3, b"\0\0\0\0\0\0\2"),
        (5, bytes(6)),
        (8, b"\1"),
        (8, bytes(16)),
    ):
        with pytest.raises(FormatError):
            quantizer_with_id(number, packed)
