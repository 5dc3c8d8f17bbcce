"""Statistics of values: what a plain calculation in float64 says, for every dtype, by compiled loops and by NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tensordb.encoding import kernels
from tensordb.encoding.summing import FIELDS, summarize
from tests.storage.tensors import DTYPES, sample

Row = dict[str, Any]


@pytest.fixture(params=["numpy", "compiled"], autouse=True)
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all work done in one of the two ways."""
    if request.param == "numpy":
        monkeypatch.setattr(kernels, "ready_to_sum", lambda nbytes: None)
    else:
        pytest.importorskip("numba")
        assert kernels.load()


def plainly(tensor: torch.Tensor) -> Row:
    """Return what summarize promises, calculated in the most obvious way, with long doubles."""
    if tensor.dtype == torch.complex32:
        tensor = torch.view_as_complex(torch.view_as_real(tensor).float())
    wide = tensor.to(torch.complex128).abs() if tensor.is_complex() else tensor.to(torch.float64)
    values = wide.reshape(-1).numpy().astype(np.longdouble)
    finite = values[np.isfinite(values)]
    counts = {"zeros": int((values == 0).sum()), "non_finite": len(values) - len(finite)}
    if not len(finite):
        return {**dict.fromkeys(FIELDS[:4], math.nan), "norm": 0.0, **counts}
    deviation = np.sqrt(((finite - finite.mean()) ** 2).mean())
    numbers = (finite.min(), finite.max(), finite.mean(), deviation, np.sqrt((finite * finite).sum()))
    return {**{name: float(each) for name, each in zip(FIELDS, numbers, strict=False)}, **counts}


def found(tensor: torch.Tensor) -> Row:
    (row,) = summarize(tensor)
    return dict(zip(FIELDS, row.tolist(), strict=True))


def assert_alike(mine: Row, expected: Row) -> None:
    for name in ("min", "max", "zeros", "non_finite"):
        assert mine[name] == expected[name] or (math.isnan(mine[name]) and math.isnan(expected[name])), name
    spread = max(abs(expected["min"]), abs(expected["max"]), 0.0)
    assert mine["mean"] == pytest.approx(expected["mean"], rel=1e-9, abs=1e-12 * spread, nan_ok=True)
    assert mine["std"] == pytest.approx(expected["std"], rel=1e-9, abs=1e-12 * spread, nan_ok=True)
    assert mine["norm"] == pytest.approx(expected["norm"], rel=1e-9)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2050,), (70_001,)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = sample(dtype, *shape)
    if dtype == torch.float64:  # random bits reach the ends of its range, where a plain calculation fails
        tensor = torch.where(tensor.abs().log10().abs() < 100, tensor, float("inf"))
    if dtype == torch.complex128:
        tensor = torch.complex(*(torch.randn(shape, dtype=torch.float64) for _ in range(2)))
    assert_alike(found(tensor), plainly(tensor))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.complex64, torch.bool], ids=str)
def test_each_row_of_a_page_is_summed_up_by_itself(dtype: torch.dtype) -> None:
    page = sample(dtype, 400, 3, 40)
    rows = summarize(page, page=True)
    assert rows.shape == (400, 7)
    for row, tensor in zip(rows.tolist(), page, strict=True):
        assert_alike(dict(zip(FIELDS, row, strict=True)), plainly(tensor))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_large_tensors_are_the_sum_of_their_parts(dtype: torch.dtype) -> None:
    tensor = sample(dtype, (1 << 20) + 12_345)
    assert_alike(found(tensor), plainly(tensor))


def test_what_is_not_finite_is_counted_and_left_out_of_everything_else() -> None:
    nan, inf = math.nan, math.inf
    for values in ([nan, 1.0, inf, -3.0, -inf, 0.0], [1.0, nan], [inf, -0.0, -0.0], [nan] * 3, [inf]):
        for dtype in (torch.float32, torch.float64, torch.float16):
            assert_alike(found(torch.tensor(values, dtype=dtype)), plainly(torch.tensor(values, dtype=dtype)))
    mixed = torch.randn(3_000_000)
    mixed[::7], mixed[1_100_000:2_200_000] = nan, inf
    assert_alike(found(mixed), plainly(mixed))


def test_an_empty_tensor_has_a_norm_and_counts_but_no_values() -> None:
    for shape in ((0,), (3, 0)):
        assert_alike(found(torch.empty(shape)), plainly(torch.empty(shape)))
    assert summarize(torch.empty(0, 4), page=True).shape == (0, 7)
    assert summarize(torch.empty(5, 0), page=True).shape == (5, 7)


def test_a_small_deviation_far_from_zero_keeps_its_digits() -> None:
    tensor = 1e9 + torch.randn(5000, dtype=torch.float64)
    assert found(tensor)["std"] == pytest.approx(plainly(tensor)["std"], rel=1e-7)
    assert found(torch.full((9000,), 0.1))["std"] == 0.0


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_squares_beyond_the_range_of_float64_do_not_spoil_norm_and_deviation(scale: float) -> None:
    tensor = torch.randn(50, dtype=torch.float64) * scale
    expected = plainly(tensor)
    for name in ("mean", "std", "norm"):
        assert found(tensor)[name] == pytest.approx(expected[name], rel=1e-9)
    page = torch.stack([tensor, torch.ones(50, dtype=torch.float64)])
    assert summarize(page, page=True)[:, 4] == pytest.approx([expected["norm"], math.sqrt(50)], rel=1e-9)
