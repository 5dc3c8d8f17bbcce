"""A value far from all others is exact, and costs the others nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tensordb.encoding import CompressionConfig
from tensordb.encoding.quantizers import quantizer_named
from tensordb.errors import InvalidInputError

from ..samples import normal, stored

QUANTIZERS: list[tuple[str, dict[str, Any]]] = [
    ("int8", {}),
    ("int8", {"granularity": 128, "scale_dtype": "bfloat16"}),
    ("int8", {"mode": "symmetric"}),
    ("int4", {"granularity": 100}),
    ("nf4", {}),
    ("fp8_e4m3", {}),
    ("fp8_e5m2", {"granularity": "per_row"}),
    ("uniform", {"step": 0.2}),
    ("uniform", {"max_error": 0.002}),
    ("uniform", {"target_bits": 5}),
]


@pytest.mark.parametrize("value", [3.0, -1e3, 1e6, -3e38])
@pytest.mark.parametrize("page", [False, True])
@pytest.mark.parametrize(("name", "kwargs"), QUANTIZERS, ids=str)
def test_an_outlier_is_exact_and_harms_no_other(name: str, kwargs: dict[str, Any], page: bool, value: float) -> None:
    config = CompressionConfig("auto", name, quantization_kwargs=kwargs)
    plain = normal(torch.float32, (300, 256))
    spoilt = plain.clone()
    spoilt[0, 0] = spoilt[17, 200] = value
    reader = stored(spoilt, config, page=page)
    decoded = reader.decode()
    assert reader.encoding.quantization == name
    assert decoded[0, 0] == decoded[17, 200] == torch.tensor(value)
    worst = (stored(plain, config, page=page).decode() - plain).abs().max()
    lost = (decoded - spoilt).abs()
    assert lost.max() <= worst * 1.2
    assert reader.encoding.error.snr_db == pytest.approx(
        stored(plain, config, page=page).encoding.error.snr_db, abs=0.2
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_outliers_of_every_dtype_are_exact(dtype: torch.dtype) -> None:
    tensor = normal(dtype, (300, 256))
    tensor[5, 6] = 6e4
    for preset in ("maximum", "q4"):
        assert stored(tensor, preset).decode()[5, 6] == tensor[5, 6]


def test_many_large_values_are_no_outliers() -> None:
    tensor = normal(torch.float32, (300, 256))
    tensor[:, ::20] *= 1e4
    reader = stored(tensor, CompressionConfig("auto", "int8"))
    assert reader.encoding.quantization == "int8"
    assert (reader.decode() - tensor).abs().max() <= (tensor.max() - tensor.min()) / 500


def test_a_last_group_of_few_values_has_no_outliers() -> None:
    tensor = normal(torch.float32, (300 * 128 + 1,))
    tensor[-1] = 5
    payload = stored(tensor, CompressionConfig("auto", "int8", quantization_kwargs={"granularity": 128}))
    assert payload._chunks.descriptor.exceptions == 0
    assert payload.decode()[-1] == pytest.approx(5, abs=0.02)


def test_zeros_with_a_single_value_come_back() -> None:
    tensor = torch.zeros(40, 64)
    tensor.view(-1)[5] = 1e-30
    assert torch.equal(stored(tensor, "q4").decode(), tensor)


@pytest.mark.parametrize(
    ("name", "wrong"), [("fp16", "relative_limit"), ("fp16", "id"), ("uniform", "name"), ("int8", "id")]
)
def test_what_is_no_parameter_is_refused_and_those_that_are_get_listed(name: str, wrong: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        CompressionConfig("auto", name, quantization_kwargs={wrong: 1})
    assert wrong in str(caught.value)
    assert "id," not in str(caught.value).split("it has")[1]
    assert quantizer_named("nf4").name == "nf4"
