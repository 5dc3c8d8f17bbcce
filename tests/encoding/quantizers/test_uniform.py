"""The uniform quantizer keeps its error bound for every element, and comes near the bits that are asked for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tensordb.encoding import CompressionConfig
from tensordb.encoding.quantizers import NotQuantizableError, PerGroup, PerRow, PerTensor, Uniform

from ..samples import same_bits, stored
from .contract import FLOATS, Contract, seeded


class TestUniform(Contract):
    name = "uniform"
    relative_error = 0.13
    configurations = (
        {"step": 0.06},
        {"step": 0.2, "granularity": 128, "scale_dtype": "bfloat16"},
        {"max_error": 0.05, "relative": True},
        {"max_error": 0.2},
        {"target_bits": 5, "granularity": "per_tensor"},
        {"step": 0.12, "granularity": "per_channel", "axis": -1},
    )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scale_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("step", [0.03, 0.06, 0.2, 1.0])
def test_no_element_errs_by_more_than_half_a_step_of_its_row(dtype: torch.dtype, scale_dtype: Any, step: float) -> None:
    tensor = (seeded(64, 384) * torch.logspace(-2, 2, 64)[:, None]).to(dtype)
    tensor[5, 5] *= 1000
    if dtype == torch.bfloat16 and step < 0.06:
        pytest.skip("finer than bfloat16 itself: stays lossless")
    quantizer = Uniform(step=step, scale_dtype=scale_dtype)
    error = (quantizer.dequantize(quantizer.quantize(tensor)).double() - tensor.double()).abs()
    rms = tensor.double().square().mean(1, keepdim=True).sqrt()
    assert (error <= step / 2 * rms * (1 + 1e-9)).all()


@given(
    st.lists(st.floats(width=32, allow_subnormal=True), min_size=1, max_size=40),
    st.integers(130, 200),
    st.sampled_from(FLOATS),
    st.floats(1e-6, 1e6),
    st.booleans(),
)
def test_a_bound_holds_for_any_values_or_they_stay_lossless(
    values: list[float], count: int, dtype: torch.dtype, bound: float, relative: bool
) -> None:
    # Drawing each of so many values by itself would take most of the time; a few in many places are as hard.
    picked = np.random.default_rng(count).integers(0, len(values), count)
    tensor = torch.tensor(values, dtype=torch.float64)[picked].to(dtype)
    bound = min(bound, 1.0) if relative else bound
    config = CompressionConfig("auto", "uniform", quantization_kwargs={"max_error": bound, "relative": relative})
    restored = stored(tensor, config).decode()
    finite = tensor.isfinite()
    assert same_bits(restored[~finite], tensor[~finite])
    usable = tensor.abs().double() <= 2.0**126
    unit = float(tensor[usable].abs().max()) if relative and usable.any() else 1.0
    error = (restored[finite].double() - tensor[finite].double()).abs()
    assert not error.numel() or float(error.max()) <= bound * unit


@pytest.mark.parametrize("bits", [3.0, 4.0, 5.0, 6.0])
def test_target_bits_are_come_near_to(bits: float) -> None:
    tensor = seeded(1000, 384)
    for detail in ({}, {"granularity": 64, "scale_dtype": "bfloat16"}):
        config = CompressionConfig("auto", "uniform", quantization_kwargs={"target_bits": bits, **detail})
        assert stored(tensor, config).encoding.stored_nbytes * 8 / tensor.numel() == pytest.approx(bits, abs=0.12)


def test_more_bits_give_more_accuracy() -> None:
    tensor = seeded(300, 384)
    errors = [Uniform(target_bits=bits).quantize(tensor).error.relative_l2 for bits in (2, 3, 4, 5, 6, 7)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.012


def test_outliers_are_exact() -> None:
    tensor = seeded(256, 256)
    tensor[3, 7], tensor[200, 1] = 1e6, -1e30
    tensor[3] /= 4096
    quantizer = Uniform(max_error=0.05)
    quantized = quantizer.quantize(tensor)
    assert quantized.exceptions is not None
    assert quantized.exceptions.positions.tolist() == [3 * 256 + 7, 200 * 256 + 1]
    restored = quantizer.dequantize(quantized)
    assert restored[3, 7] == tensor[3, 7]
    assert restored[200, 1] == tensor[200, 1]
    assert (restored - tensor).abs().max() <= 0.05


def test_a_bound_too_small_for_8_bit_codes_is_refused() -> None:
    with pytest.raises(NotQuantizableError, match="within its bounds"):
        Uniform(max_error=1e-9).quantize(seeded(1000))


def test_a_tensor_of_few_dimensions_or_short_rows_is_one_row() -> None:
    quantizer = Uniform(step=0.1)
    for shape, scales in (((4096,), 1), ((64, 63), 1), ((64, 64), 64), ((8, 4, 32), 8)):
        assert quantizer.quantize(seeded(*shape)).parameters[0].numel() == scales
    assert quantizer.granularity == PerRow()
    assert Uniform(max_error=0.1).granularity == PerTensor()


@pytest.mark.parametrize("scale_dtype", ["float32", "bfloat16"])
def test_scales_have_the_dtype_that_was_asked_for(scale_dtype: Any) -> None:
    (scales,) = Uniform(step=0.1, granularity=PerGroup(64), scale_dtype=scale_dtype).quantize(seeded(640)).parameters
    assert str(scales.dtype) == f"torch.{scale_dtype}"


def test_rows_of_denormals_are_exact_or_within_the_bound() -> None:
    tensor = seeded(640, 100)
    tensor[4] = torch.tensor(np.full(100, 1e-42, np.float32))
    tensor[4, 3] = math.inf
    quantizer = Uniform(step=0.1)
    assert same_bits(quantizer.dequantize(quantizer.quantize(tensor))[4], tensor[4])
