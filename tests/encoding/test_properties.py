"""What holds for every tensor, however it lies in memory and however it is encoded.

The ways to encode come from the package's registries, so that a new codec, filter or quantizer is tested without a word
here. Hypothesis draws the same examples in every run (`derandomize`), keeps no database, and has no deadline, as the
first use of a codec or of the compiled loops takes longer than the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tensordb.encoding import COMPRESSION_PRESETS, CompressionConfig, PayloadReader, encode, kernels
from tensordb.encoding.codecs import CODEC_NAMES
from tensordb.encoding.quantizers import QUANTIZER_NAMES
from tensordb.errors import MissingDependencyError
from tensordb.tensors import byte_view, dtype_name, empty, snapshot, spec_of, view_of

from .every import COMPRESSIONS, FILTER_NAMES, QUANTIZATIONS
from .samples import DTYPES, normal, random_bits, same_bits

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ALWAYS_THE_SAME = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-30, 1e30, 5e-324, 65504.0]


@st.composite
def tensors(draw: st.DrawFn, dtypes: Sequence[torch.dtype] = tuple(DTYPES), least: int = 0) -> torch.Tensor:
    """Any values in any shape and any strides: in order, turned, with steps, backwards, expanded."""
    dtype = draw(st.sampled_from(dtypes))
    shape = tuple(draw(st.lists(st.integers(least, 7), max_size=4)))
    if draw(st.booleans()):
        shape = (*shape, draw(st.sampled_from((16, 33, 130))))
    seed = draw(st.integers(0, 1 << 20))
    plain = _values(draw, dtype, shape, seed)
    if not shape:
        return plain
    axis = draw(st.integers(0, len(shape) - 1))
    match draw(st.sampled_from(("plain", "transposed", "stepped", "backwards", "expanded"))):
        case "transposed":
            return plain.movedim(axis, 0)
        case "stepped":
            return plain[(slice(None),) * axis + (slice(seed % 2, None, 2),)]
        case "backwards":
            return _backwards(plain, axis)
        case "expanded":
            return plain.unsqueeze(axis).expand(*shape[:axis], 3, *shape[axis:])
    return plain


def _values(draw: st.DrawFn, dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    kind = draw(st.sampled_from(("bits", "normal", "normal", "constant", "sparse", "special")))
    if kind == "bits" or dtype not in FLOATS:
        bits = random_bits(dtype, shape, seed)
        if kind in ("constant", "sparse"):
            byte_view(bits)[:] *= np.uint8(0) if kind == "constant" else (np.arange(byte_view(bits).size) % 9 == 0)
        return bits
    values = normal(torch.float64, shape, seed) * draw(st.sampled_from((1.0, 1e-30, 1e3, 1e30)))
    values += draw(st.sampled_from((0.0, 0.0, 100.0, -1e6)))
    if kind == "constant":
        values = torch.full(shape, draw(st.sampled_from(SPECIAL)), dtype=torch.float64)
    elif kind == "sparse":
        values = values * (torch.arange(values.numel()).reshape(shape) % 5 == 0)
    elif kind == "special" and values.numel():
        values.view(-1)[seed % values.numel()] = draw(st.sampled_from(SPECIAL))
    return values.to(dtype)


def _backwards(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Turned round, by bytes, as torch flips neither every dtype nor without a copy."""
    spec = spec_of(tensor)
    words = byte_view(tensor).reshape(*spec.shape, tensor.element_size())
    return view_of(np.ascontiguousarray(np.flip(words, axis)).reshape(-1), spec)


def payload_and_ids(tensor: torch.Tensor, config: CompressionConfig, page: bool) -> tuple[bytes, bytes, bytes]:
    try:
        encoded = encode(snapshot(tensor), config, page=page)
    except MissingDependencyError:
        assume(False)
    return b"".join(encoded.buffers), encoded.content_id, encoded.object_id


def all_reads_agree(reader: PayloadReader, data: st.DataObject) -> torch.Tensor:
    """The decoded tensor, once every other way to read it gave the same."""
    whole = reader.decode()
    shape = reader.spec.shape
    strided = empty(type(reader.spec)(reader.spec.dtype, shape[::-1]))
    strided = strided.permute(*range(len(shape))[::-1]) if shape else strided
    assert same_bits(reader.decode(strided), whole)
    index = tuple(data.draw(st.slices(size) | st.integers(-size, size - 1) if size else st.slices(0)) for size in shape)
    words = byte_view(whole).reshape(*shape, whole.element_size())
    assert byte_view(snapshot(reader.decode_index(index))).tobytes() == words[index].tobytes()
    if shape and shape[0]:
        rows = data.draw(st.lists(st.integers(-shape[0], shape[0] - 1), max_size=5))
        assert byte_view(reader.decode_rows(rows)).tobytes() == words[rows].tobytes()
    return whole


def test_every_codec_filter_and_quantizer_is_among_those_tried() -> None:
    tried = {config.compression for config in COMPRESSIONS}
    assert {"pcodec", *tried} >= set(CODEC_NAMES), "every.py lacks parameters for a codec"
    assert {config.compression_kwargs.get("filter", "none") for config in COMPRESSIONS} == set(FILTER_NAMES)
    names = {config.quantization for config in QUANTIZATIONS}
    assert names == set(QUANTIZER_NAMES) - {"none"}, "every.py lacks parameters for a quantizer"


@settings(ALWAYS_THE_SAME, max_examples=500)
@given(tensors(), st.sampled_from(COMPRESSIONS), st.booleans(), st.data())
def test_lossless_gives_every_bit_back_in_every_way(
    tensor: torch.Tensor, config: CompressionConfig, page: bool, data: st.DataObject
) -> None:
    payload, content, identity = payload_and_ids(tensor, config, page and tensor.dim() > 0)
    reader = PayloadReader(payload)
    assert same_bits(all_reads_agree(reader, data), tensor)
    reader.verify()
    assert reader.content_id() == content
    again = payload_and_ids(tensor, config, page and tensor.dim() > 0)
    assert again == (payload, content, identity)
    other = data.draw(st.sampled_from(COMPRESSIONS))
    assert payload_and_ids(tensor, other, page and tensor.dim() > 0)[1] == content


@settings(ALWAYS_THE_SAME, max_examples=500)
@given(tensors(FLOATS, least=1), st.sampled_from(QUANTIZATIONS), st.booleans(), st.data())
def test_lossy_keeps_to_the_error_it_states(
    tensor: torch.Tensor, config: CompressionConfig, page: bool, data: st.DataObject
) -> None:
    page = page and tensor.dim() > 0
    payload, content, _ = payload_and_ids(tensor, config, page)
    reader = PayloadReader(payload)
    restored = all_reads_agree(reader, data)
    assert reader.content_id() == content
    encoding = reader.encoding
    if encoding.quantization == "none":
        assert encoding.note
        assert same_bits(restored, tensor)
        return
    assert (encoding.quantization, encoding.note) == (config.quantization, None) or encoding.note
    assert encoding.stored_nbytes < encoding.original_nbytes + 400
    _within(tensor.double(), restored.double(), encoding.error.relative_l2, encoding.error.max_abs)
    other = data.draw(st.sampled_from([each for each in COMPRESSIONS if not each.compression_kwargs]))
    recompressed = CompressionConfig(other.compression, config.quantization, {}, config.quantization_kwargs)
    assert payload_and_ids(tensor, recompressed, page)[1] == content


def test_a_signalling_nan_is_stored_without_a_warning() -> None:
    for dtype, bits in ((torch.float16, 0x7D00), (torch.bfloat16, 0x7FA0)):
        tensor = normal(dtype, (64,))
        tensor.view(torch.int16)[7] = bits
        for config in QUANTIZATIONS:
            restored = PayloadReader(payload_and_ids(tensor, config, False)[0]).decode()
            assert torch.equal(restored.isnan(), tensor.isnan())


def _within(original: torch.Tensor, restored: torch.Tensor, relative: float, largest: float) -> None:
    finite = original.isfinite()
    assert torch.equal(original.isnan(), restored.isnan())
    assert torch.equal(original[~finite & ~original.isnan()], restored[~finite & ~original.isnan()])
    if not finite.any():
        return
    lost = (restored - original)[finite]
    assert float(lost.abs().max()) == pytest.approx(largest, rel=1e-5, abs=1e-300)
    unit = float(original[finite].abs().max()) or 1.0
    lost, sizes = (lost / unit), (original[finite] / unit)
    # Relative to the values that have codes: all that are not exact have one, exceptions have none.
    slack = 1e-12 * relative
    assert relative * float(sizes[lost != 0].norm()) * 0.999 - slack <= float(lost.norm())
    assert float(lost.norm()) <= relative * float(sizes.norm()) * 1.001 + slack


@settings(ALWAYS_THE_SAME, max_examples=200)
@given(
    st.sampled_from(DTYPES), st.sampled_from([(5000,), (40, 3, 130), (700, 16)]), st.booleans(), st.integers(0, 9),
    st.sampled_from([*COMPRESSIONS, *QUANTIZATIONS, *COMPRESSION_PRESETS.values()]),
)  # fmt: skip
def test_compiled_loops_and_numpy_write_and_read_the_same_bytes(
    dtype: torch.dtype, shape: tuple[int, ...], page: bool, seed: int, config: CompressionConfig
) -> None:
    if not kernels.load():
        pytest.skip("numba is not installed")
    tensor = normal(dtype, shape, seed) if dtype in FLOATS else random_bits(dtype, shape, seed)
    compiled, plain = _by_both(lambda: payload_and_ids(tensor, config, page))
    assert compiled == plain
    reader = PayloadReader(compiled[0])
    for read in (reader.decode, lambda: reader.decode_index(slice(None, None, -3)), lambda: reader.decode_rows([3, 0])):
        assert same_bits(*_by_both(read)), dtype_name(dtype)


def _by_both(action: Any) -> tuple[Any, Any]:
    with pytest.MonkeyPatch.context() as patch:
        compiled = action()
        patch.setattr(kernels, "ready", lambda nbytes: None)
        return compiled, action()
