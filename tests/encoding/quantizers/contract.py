"""What every quantizer promises; each one's test module subclasses Contract with its own configurations."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch

from tensordb.encoding import CompressionConfig, PayloadReader, decode_rows_many, encode, kernels
from tensordb.encoding.quantizers import Quantizer, quantizer_named, quantizer_with_id
from tensordb.tensors import byte_view

from ..samples import payload_of, same_bits, stored

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normally distributed float32 values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative(restored: torch.Tensor, tensor: torch.Tensor) -> float:
    """Relative L2 error."""
    return float((restored.double() - tensor.double()).norm() / tensor.double().norm())


class Contract:
    """Shared tests."""

    configurations: ClassVar[tuple[dict[str, Any], ...]]
    name: ClassVar[str]
    relative_error: ClassVar[float]
    """What no configuration exceeds on normally distributed values."""
    in_100_to_101: ClassVar[float] = math.inf
    """Largest error of values between 100 and 101."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test with every configuration."""
        if "config" in metafunc.fixturenames:
            configs = [CompressionConfig("auto", self.name, quantization_kwargs=each) for each in self.configurations]
            metafunc.parametrize("config", configs, ids=map(str, self.configurations))

    @pytest.fixture
    def quantizer(self, config: CompressionConfig) -> Quantizer:
        quantizer = config.quantizer()
        assert quantizer is not None
        return quantizer

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    @pytest.mark.parametrize("shape", [(2048,), (40, 96), (5, 7, 110)], ids=str)
    def test_the_error_is_small_and_as_stated(
        self, quantizer: Quantizer, dtype: torch.dtype, shape: tuple[int, ...]
    ) -> None:
        tensor = (seeded(*shape) * 3).to(dtype)
        quantized = quantizer.quantize(tensor)
        restored = quantizer.dequantize(quantized)
        assert (restored.dtype, restored.shape) == (tensor.dtype, tensor.shape)
        assert relative(restored, tensor) < self.relative_error + torch.finfo(dtype).eps
        assert quantized.error.relative_l2 == pytest.approx(relative(restored, tensor), rel=1e-3)
        assert quantized.error.max_abs == pytest.approx(float((restored.double() - tensor.double()).abs().max()))

    def test_its_parameters_and_its_repr_rebuild_it(self, quantizer: Quantizer) -> None:
        assert quantizer_named(quantizer.name, **quantizer.parameters()) == quantizer
        assert quantizer_with_id(quantizer.id, quantizer.pack()) == quantizer
        import tensordb.encoding.quantizers as room

        assert eval(repr(quantizer), vars(room).copy()) == quantizer

    def test_a_row_of_a_page_is_quantized_as_it_would_be_alone(self, quantizer: Quantizer) -> None:
        if "target_bits" in quantizer.parameters():
            pytest.skip("the step is found from all records of a page")
        page = seeded(9, 4, 130) * torch.logspace(-1, 1, 9)[:, None, None]
        together = quantizer.dequantize(quantizer.quantize(page, page=True))
        alone = torch.stack([quantizer.dequantize(quantizer.quantize(row)) for row in page])
        assert torch.equal(together, alone)

    def test_non_finite_values_are_exact_and_harm_no_others(self, config: CompressionConfig) -> None:
        tensor = seeded(64, 6, 130)
        tensor[3, 1, 5], tensor[20, 0, 0], tensor[63, 5, 129] = math.nan, math.inf, -math.inf
        tensor.view(torch.int32)[40, 2, 1] = 0x7FC01234
        odd = ~tensor.isfinite()
        for page in (False, True):
            reader = stored(tensor, config, page=page)
            assert reader.encoding.quantization == self.name
            restored = reader.decode()
            assert same_bits(restored[odd], tensor[odd])
            assert relative(restored[~odd], tensor[~odd]) < self.relative_error
            assert same_bits(reader.decode_index((slice(2, 41), 2, slice(1, 7))), restored[2:41, 2, 1:7])
            rows = [40, 3, 63, 3, 0]
            assert same_bits(reader.decode_rows(rows), restored[rows])
            assert same_bits(decode_rows_many([(reader, [20]), (reader, [3, 40])]), restored[[20, 3, 40]])

    @pytest.mark.parametrize("scale", [1e-30, 1e-7, 1e7, 1e30])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
    def test_scales_far_from_one_keep_the_relative_error(
        self, config: CompressionConfig, dtype: torch.dtype, scale: float
    ) -> None:
        tensor = (seeded(40, 96).double() * scale).to(dtype)
        reader = stored(tensor, config)
        if "max_error" in config.quantization_kwargs and not config.quantization_kwargs.get("relative"):
            bound = config.quantization_kwargs["max_error"]
            assert (reader.decode().double() - tensor.double()).abs().max() <= bound
            return
        assert reader.encoding.quantization == self.name
        assert relative(reader.decode(), tensor) < self.relative_error + torch.finfo(dtype).eps

    def test_zeros_and_constants_come_back(self, config: CompressionConfig) -> None:
        zeros = torch.zeros(40, 96)
        assert torch.equal(stored(zeros, config).decode(), zeros)
        halves = seeded(40, 96)
        halves[::2] = 0
        assert relative(stored(halves, config).decode(), halves) < self.relative_error * 1.5
        for value in (1.0, -3.25, 2.5, 0.1):
            constant = torch.full((40, 96), value)
            assert torch.allclose(stored(constant, config).decode(), constant, rtol=self.relative_error, atol=0)

    def test_values_in_100_to_101_keep_what_is_promised(self, config: CompressionConfig) -> None:
        tensor = torch.linspace(100, 101, 40 * 96).reshape(40, 96)
        assert (stored(tensor, config).decode() - tensor).abs().max() <= min(self.in_100_to_101, 101)

    @pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (7,)], ids=str)
    def test_what_is_too_small_stays_lossless(self, config: CompressionConfig, shape: tuple[int, ...]) -> None:
        tensor = torch.full(shape, 0.3)
        reader = stored(tensor, config)
        assert reader.encoding.quantization == "none"
        assert "lossless" in str(reader.encoding.note)
        assert same_bits(reader.decode(), tensor)

    def test_a_view_with_strides_is_stored_as_its_copy(self, config: CompressionConfig) -> None:
        tensor = seeded(96, 80).t()[::2]
        assert payload_of(tensor, config) == payload_of(tensor.contiguous(), config)

    def test_parts_are_parts_of_the_whole(self, config: CompressionConfig) -> None:
        tensor = seeded(700, 999)
        reader = stored(tensor, config)
        whole = reader.decode()
        assert same_bits(whole, reader.decode(out=torch.empty(999, 700).t()))
        for index in (3, slice(650, 400, -7), (slice(None), 5), (slice(10, 20), slice(990, None))):
            taken = reader.decode_index(index)
            wanted = whole.numpy()[index]
            assert same_bits(taken, torch.from_numpy(wanted.copy()))

    @pytest.mark.parametrize("page", [False, True])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
    def test_numpy_and_compiled_loops_give_the_same_bits(
        self, config: CompressionConfig, page: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("numba")
        assert kernels.load()
        tensor = (seeded(300, 700) * torch.logspace(-3, 3, 700)).to(dtype)
        compiled = payload_of(tensor, config, page=page)
        restored = PayloadReader(compiled).decode()
        monkeypatch.setattr(kernels, "ready", lambda nbytes: None)
        assert payload_of(tensor, config, page=page) == compiled
        assert same_bits(PayloadReader(compiled).decode(), restored)

    def test_the_content_id_is_the_same_from_what_is_stored(self, config: CompressionConfig) -> None:
        tensor = seeded(40, 96)
        tensor[1, 2] = math.nan
        encoded = encode(tensor, config)
        assert PayloadReader(b"".join(encoded.buffers)).content_id() == encoded.content_id
        tensor[1, 2] = math.inf
        assert encode(tensor, config).content_id != encoded.content_id

    def test_what_dequantize_gives_is_what_is_stored(self, config: CompressionConfig, quantizer: Quantizer) -> None:
        tensor = seeded(40, 96)
        tensor[1, 2] = math.nan
        direct = quantizer.dequantize(quantizer.quantize(tensor))
        assert (byte_view(direct) == byte_view(stored(tensor, config).decode())).all()
