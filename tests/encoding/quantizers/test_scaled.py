"""int8, int4, nf4 and fp8 keep what every quantizer promises, and their own bounds."""

from __future__ import annotations

import math

import pytest
import torch

from tensordb.encoding.quantizers import (
    Fp8E4m3,
    Fp8E5m2,
    Int4,
    Int8,
    Nf4,
    NotQuantizableError,
    PerGroup,
    quantizer_named,
)

from .contract import Contract, relative, seeded


class TestInt8(Contract):
    name = "int8"
    relative_error = 0.017
    in_100_to_101 = 0.5
    configurations = (
        {},
        {"granularity": 128, "scale_dtype": "bfloat16"},
        {"granularity": "per_channel", "axis": -1},
        {"granularity": "per_row", "mode": "symmetric"},
        {"granularity": "per_group", "size": 100, "mode": "symmetric", "scale_dtype": "bfloat16"},
    )


class TestInt4(Contract):
    name = "int4"
    relative_error = 0.32
    in_100_to_101 = 8.0
    configurations = (
        {},
        {"granularity": 32, "mode": "symmetric"},
        {"granularity": 128, "scale_dtype": "bfloat16"},
        {"granularity": "per_channel", "axis": 0, "mode": "symmetric", "scale_dtype": "bfloat16"},
        {"granularity": "per_tensor"},
    )


class TestNf4(Contract):
    name = "nf4"
    relative_error = 0.2
    configurations = ({}, {"granularity": 128, "scale_dtype": "bfloat16"}, {"granularity": "per_row"})


class TestFp8E4m3(Contract):
    name = "fp8_e4m3"
    relative_error = 0.04
    in_100_to_101 = 3.2
    configurations = ({}, {"granularity": 64, "scale_dtype": "bfloat16"}, {"granularity": "per_channel", "axis": -1})


class TestFp8E5m2(Contract):
    name = "fp8_e5m2"
    relative_error = 0.08
    in_100_to_101 = 6.4
    configurations = ({}, {"granularity": 64})


@pytest.mark.parametrize("scale_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["affine", "symmetric"])
def test_int4_errs_by_at_most_half_a_step(mode: str, scale_dtype: str) -> None:
    tensor = seeded(500, 64) + seeded(500, 1, seed=1)
    quantizer = quantizer_named("int4", mode=mode, scale_dtype=scale_dtype)
    quantized = quantizer.quantize(tensor)
    steps = quantized.parameters[0].float().abs()[:, None]
    assert int(quantized.codes.max()) == 15
    assert ((quantizer.dequantize(quantized) - tensor).abs() <= steps / 2 * 1.0001).all()


def test_both_ends_of_the_int4_codes_are_used_whichever_side_is_longer() -> None:
    for sign in (1.0, -1.0):
        tensor = torch.linspace(-1, 0.9, 64) * sign
        assert set(Int4(mode="symmetric").quantize(tensor).codes.tolist()) >= {0, 15}


def test_nf4_keeps_its_own_levels() -> None:
    levels = torch.tensor([-1.0, -0.6961928009986877, 0.0, 0.07958029955625534, 0.7229568362236023, 1.0] * 16)
    assert torch.equal(Nf4().dequantize(Nf4().quantize(levels)), levels)
    assert Nf4().quantize(levels).codes.unique().tolist() == [0, 1, 7, 8, 14, 15]


@pytest.mark.parametrize("quantizer", [Fp8E4m3(), Fp8E5m2()], ids=repr)
def test_fp8_never_saturates_silently(quantizer: Fp8E4m3) -> None:
    for factor in (0.3, 1.0, 7.7, 1e20):
        tensor = seeded(4096) * factor
        restored = quantizer.dequantize(quantizer.quantize(tensor))
        assert restored.isfinite().all()
        largest = tensor.abs().argmax()
        assert restored[largest] == pytest.approx(float(tensor[largest]), rel=1e-6)


def test_four_bit_quantizers_say_that_their_codes_can_be_packed() -> None:
    assert [each.code_bits for each in (Int4(), Nf4(), Int8(), Fp8E4m3())] == [4, 4, 8, 8]


@pytest.mark.parametrize("name", ["int8", "int4", "nf4", "fp8_e4m3", "fp8_e5m2", "uniform"])
def test_too_many_exceptions_are_refused(name: str) -> None:
    tensor = seeded(640)
    tensor[:11] = math.nan
    quantizer = quantizer_named(name, **({"step": 0.1} if name == "uniform" else {}))
    with pytest.raises(NotQuantizableError, match="11 of 640 values"):
        quantizer.quantize(tensor)
    tensor[0] = 1
    assert len(quantizer.quantize(tensor).exceptions or ()) == 10


def test_a_group_of_nothing_but_nan_is_exact() -> None:
    tensor = seeded(4096)
    tensor[64:72] = math.nan
    for mode in ("affine", "symmetric"):
        restored = (quantizer := Int8(PerGroup(8), mode)).dequantize(quantizer.quantize(tensor))
        assert restored[64:72].isnan().all()
        assert relative(restored[72:], tensor[72:]) < 0.02


def test_an_outlier_that_no_scale_can_hold_is_exact() -> None:
    tensor = seeded(4096).double()
    tensor[7] = -1e300
    quantizer = Int8(PerGroup(128))
    restored = quantizer.dequantize(quantizer.quantize(tensor))
    assert restored[7] == -1e300
    assert relative(restored[8:], tensor[8:]) < 0.02
