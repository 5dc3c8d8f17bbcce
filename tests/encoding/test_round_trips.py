"""A tensor comes back as it was: bit for bit when lossless, within the measured error when quantized."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tensordb.encoding import COMPRESSION_PRESETS, CompressionConfig, PayloadReader, encode
from tensordb.errors import InvalidInputError
from tensordb.tensors import byte_view

from .samples import CODECS, DTYPES, normal, payload_of, random_bits, same_bits, stored


@pytest.mark.parametrize("config", CODECS, ids=repr)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("page", [False, True])
def test_lossless_over_many_chunks(config: CompressionConfig, dtype: torch.dtype, page: bool) -> None:
    if config.compression in ("best", "lzma") and dtype not in (torch.float32, torch.int64):
        pytest.skip("as slow as it is similar")
    tensor = random_bits(dtype, (301, 7, 33))
    smooth = byte_view(tensor)
    smooth[: smooth.nbytes // 2 // 16 * 16] &= 1
    assert same_bits(stored(tensor, config, page=page).decode(), tensor)


@pytest.mark.parametrize("preset", COMPRESSION_PRESETS)
@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.5),
        torch.tensor([7.25]),
        torch.empty(0),
        torch.empty(3, 0, 2),
        torch.randint(0, 255, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        torch.arange(-(1 << 40), 1 << 40, 1 << 33),
        torch.tensor([True, False] * 99),
        torch.arange(99).to(torch.complex64),
        torch.full((40,), math.nan),
    ],
    ids=["0-d", "one", "empty", "empty-3d", "image", "int64", "bool", "complex", "all-nan"],
)
def test_what_is_not_quantized_is_lossless_under_every_preset_and_says_so(preset: str, tensor: torch.Tensor) -> None:
    reader = stored(tensor, preset)
    if reader.encoding.quantization == "none":
        assert same_bits(reader.decode(), tensor)
        assert (reader.encoding.note is not None) == (COMPRESSION_PRESETS[preset].quantization != "none")
    else:
        assert tensor.isnan().all()
        assert reader.decode().isnan().all()


def test_70000_through_fp16_is_kept_exactly() -> None:
    tensor = normal(torch.float32, (64,))
    tensor[9] = 70000
    reader = stored(tensor, "balanced")
    assert reader.decode()[9] == 70000
    assert reader.encoding.quantization == "fp16"


def test_a_tensor_that_mostly_overflows_stays_lossless_and_says_so() -> None:
    tensor = normal(torch.float32, (64,)) * 1e9
    reader = stored(tensor, "balanced")
    assert same_bits(reader.decode(), tensor)
    assert "of 64 values" in str(reader.encoding.note)


@pytest.mark.parametrize("preset", [name for name, each in COMPRESSION_PRESETS.items() if each.quantization != "none"])
@pytest.mark.parametrize("elements", [64, 640])
def test_non_finite_values_survive_every_quantizer(preset: str, elements: int) -> None:
    tensor = normal(torch.float32, (elements,))
    tensor[3], tensor[4], tensor[5] = math.nan, math.inf, -math.inf
    restored = stored(tensor, preset).decode()
    assert torch.equal(restored.isnan(), tensor.isnan())
    assert torch.equal(restored.isposinf(), tensor.isposinf())
    assert torch.equal(restored.isneginf(), tensor.isneginf())


@pytest.mark.parametrize("preset", COMPRESSION_PRESETS)
def test_a_transposed_view_comes_back_in_its_own_order(preset: str) -> None:
    tensor = normal(torch.float32, (40, 60)).t()
    restored = stored(tensor, preset).decode()
    assert restored.shape == (60, 40)
    assert torch.allclose(restored, tensor, atol=0.006)


@pytest.mark.parametrize("preset", COMPRESSION_PRESETS)
def test_constants_take_almost_nothing_when_compressed(preset: str) -> None:
    tensor = torch.full((500, 300), 2.5)
    reader = stored(tensor, preset)
    assert torch.equal(reader.decode(), tensor)
    if COMPRESSION_PRESETS[preset].compression != "none":
        assert reader.encoding.stored_nbytes < tensor.nbytes / 20


@pytest.mark.parametrize("preset", ["none", "lossless", "maximum"])
def test_a_small_tensor_pays_at_most_48_bytes(preset: str) -> None:
    for tensor in (torch.tensor(1.0), torch.ones(3, 5), torch.ones(2, 3, 1, 2, dtype=torch.int64)):
        config = replace(COMPRESSION_PRESETS[preset], quantization="none", quantization_kwargs={})
        assert stored(tensor, config).encoding.stored_nbytes <= tensor.nbytes + 48


def test_out_receives_the_values_whatever_its_strides() -> None:
    tensor = normal(torch.float32, (64, 50))
    for preset in COMPRESSION_PRESETS:
        reader = stored(tensor, preset)
        for out in (torch.empty(64, 50), torch.empty(50, 64).t(), torch.empty(64, 100)[:, ::2]):
            assert reader.decode(out) is out
            assert same_bits(out, reader.decode())
    parameter = torch.nn.Parameter(torch.zeros(64, 50))
    stored(tensor, "lossless").decode(parameter)
    assert torch.equal(parameter, tensor)


def test_out_of_another_dtype_or_shape_is_refused() -> None:
    reader = stored(torch.ones(4, 4), "lossless")
    for out in (torch.ones(4, 5), torch.ones(4, 4, dtype=torch.float64), [1]):
        with pytest.raises(InvalidInputError, match="out must be"):
            reader.decode(out)  # type: ignore[arg-type]


def test_returned_tensors_never_alias_the_payload() -> None:
    for preset in COMPRESSION_PRESETS:
        payload = bytearray(payload_of(normal(torch.float32, (64, 16)), preset, page=True))
        reader = PayloadReader(payload)
        taken = [reader.decode(), reader.decode_index(3), reader.decode_rows([3])]
        before = [tensor.clone() for tensor in taken]
        payload[:] = bytes(len(payload))
        assert all(torch.equal(tensor, old) for tensor, old in zip(taken, before, strict=True))


def test_view_aliases_the_payload_when_nothing_was_applied() -> None:
    for shape, page in (((1000, 300), False), ((1000, 375), True), ((7,), False), ((0, 4), True)):
        tensor = normal(torch.float32, shape)
        payload = payload_of(tensor, "none", page=page)
        view = PayloadReader(payload).view()
        assert same_bits(view, tensor)
        start = np.frombuffer(payload, np.uint8).ctypes.data
        assert not tensor.numel() or start < view.data_ptr() < start + len(payload)
    for preset in ("lossless", "fp16_only", "fast"):
        with pytest.raises(InvalidInputError, match="no bytes to alias"):
            stored(normal(torch.float32, (64, 64)), preset).view()


def test_equal_tensors_meet_by_content_and_schemes_keep_them_apart() -> None:
    tensor = normal(torch.float32, (300, 64))
    presets = ("none", "fast", "lossless")
    encoded = {name: encode(tensor, COMPRESSION_PRESETS[name]) for name in presets}
    assert len({item.content_id for item in encoded.values()}) == 1
    assert len({item.object_id for item in encoded.values()}) == 3
    again = encode(tensor.clone(), COMPRESSION_PRESETS["fast"])
    assert again.object_id == encoded["fast"].object_id
    assert b"".join(again.buffers) == b"".join(encoded["fast"].buffers)
    others = [tensor.reshape(64, 300), tensor.view(torch.int32), tensor + 1e-6]
    ids = {encode(other, COMPRESSION_PRESETS["fast"]).content_id for other in others}
    assert len(ids | {again.content_id}) == 4
    assert (len(again.content_id), len(again.object_id)) == (32, 16)


@pytest.mark.slow
def test_two_gibibytes_come_back() -> None:
    tensor = torch.zeros(1 << 31, dtype=torch.uint8)
    tensor[:: 1 << 20] = 7
    tensor[-1] = 9
    reader = stored(tensor, "lossless")
    assert torch.equal(reader.decode(), tensor)
    assert reader.decode_index(slice(-2, None)).tolist() == [0, 9]
