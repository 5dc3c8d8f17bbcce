"""A part of a stored tensor equals the same part of the whole, and costs only the chunks it touches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensordb.encoding import COMPRESSION_PRESETS, CompressionConfig, PayloadReader, decode_rows_many
from tensordb.encoding.format import parse_header
from tensordb.errors import IntegrityError, InvalidInputError

from .samples import DTYPES, INT8_KWARGS, normal, payload_of, random_bits, same_bits, stored

CONFIGS = [
    *(COMPRESSION_PRESETS[name] for name in ("none", "lossless", "balanced", "maximum")),
    *(CompressionConfig("zstd", "int8", {}, kwargs) for kwargs in INT8_KWARGS),
]
SHAPES = [(), (7,), (90_000,), (300, 500), (3, 70_000), (2000, 3, 40), (4, 5, 6, 7)]


@st.composite
def indices(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    """Any basic index that fits the shape."""
    parts: list[Any] = []
    for size in shape[: draw(st.integers(0, len(shape)))]:
        if draw(st.booleans()):
            parts.append(draw(st.integers(-size, size - 1)))
        else:
            parts.append(draw(st.slices(size)))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(parts)))
        given_after = len(parts) - at
        if not given_after or len(parts) == len(shape):
            parts.insert(at, Ellipsis)
    return parts[0] if len(parts) == 1 and draw(st.booleans()) else tuple(parts)


def expected(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    """What NumPy gives, which allows negative steps where torch does not."""
    positions = np.arange(tensor.numel()).reshape(tensor.shape)[index]
    return tensor.reshape(-1)[torch.from_numpy(np.asarray(positions).reshape(-1).copy())].reshape(positions.shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("page", [False, True])
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_index_gives_that_part_of_the_whole(shape: tuple[int, ...], page: bool, data: st.DataObject) -> None:
    config = data.draw(st.sampled_from(CONFIGS))
    reader = _reader(shape, page and bool(shape), CONFIGS.index(config))
    index = data.draw(indices(shape))
    assert same_bits(reader.decode_index(index), expected(reader.decode(), index))


_readers: dict[Any, PayloadReader] = {}


def _reader(shape: tuple[int, ...], page: bool, config: int) -> PayloadReader:
    key = (shape, page, config)
    if key not in _readers:
        _readers[key] = stored(normal(torch.float32, shape), CONFIGS[config], page=page)
    return _readers[key]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_can_be_read_in_part(dtype: torch.dtype) -> None:
    tensor = random_bits(dtype, (30, 4, 5))
    for page in (False, True):
        reader = stored(tensor, "lossless", page=page)
        for index in (3, slice(None, None, -2), (slice(2, 9), 1), (..., 2), (slice(None), slice(None, None, -1), -1)):
            assert same_bits(reader.decode_index(index), _part(tensor, index))
        taken = reader.decode_rows([5, 0, -1, 5])
        for at, row in enumerate((5, 0, -1, 5)):
            assert same_bits(_part(taken, at), _part(tensor, row))


def _part(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    """A part of a tensor by its bytes, as torch cannot index every dtype."""
    size = tensor.element_size()
    raw = tensor.reshape(-1).view(torch.uint8).reshape(*tensor.shape, size).numpy()
    index = index if isinstance(index, tuple) else (index,)
    full = index if Ellipsis in index else (*index, ...)
    taken = np.ascontiguousarray(raw[(*full, slice(None))])
    return torch.from_numpy(taken).reshape(-1).view(tensor.dtype).reshape(taken.shape[:-1])


@pytest.mark.parametrize("index", [7, -8, (0, 5), (0, 0, 0), (slice(None), -6)], ids=str)
def test_an_index_out_of_range_is_an_index_error(index: Any) -> None:
    with pytest.raises(IndexError):
        stored(torch.ones(7, 5), "lossless").decode_index(index)


@pytest.mark.parametrize("index", [None, "a", 1.5, [1, 2], True, (..., ...), slice(0, 5, 0), slice("a", None)], ids=str)
def test_other_kinds_of_index_are_refused(index: Any) -> None:
    with pytest.raises(InvalidInputError):
        stored(torch.ones(7, 5), "lossless").decode_index(index)


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
@pytest.mark.parametrize("shape", [(2700, 24), (40, 3000), (500, 5, 7), (90, 1), (33,), (9, 100_000)], ids=str)
@pytest.mark.parametrize("page", [False, True])
def test_rows_come_in_the_order_asked(config: CompressionConfig, shape: tuple[int, ...], page: bool) -> None:
    tensor = normal(torch.float32, shape)
    reader = stored(tensor, config, page=page)
    rows = np.random.default_rng(0).integers(-shape[0], shape[0], 50)
    assert same_bits(reader.decode_rows(rows), reader.decode()[torch.from_numpy(rows)])
    assert reader.decode_rows([]).shape == (0, *shape[1:])
    assert same_bits(reader.decode_rows(range(3)), reader.decode()[:3])


def test_rows_of_many_payloads_are_read_in_one_pass() -> None:
    presets = ["lossless", "lossless", "none", "maximum", "balanced", "fast", "lossless"]
    readers = [stored(normal(torch.float32, (90, 48), at), name, page=at % 2 == 0) for at, name in enumerate(presets)]
    for chosen in (readers, readers[::2], readers[:2]):
        requests = [(reader, [at + 5, 0, -1]) for at, reader in enumerate(chosen)]
        together = torch.cat([reader.decode()[rows] for reader, rows in requests])
        assert same_bits(decode_rows_many(requests), together)


def test_rows_that_do_not_belong_together_are_refused() -> None:
    readers = [stored(torch.ones(4, width), "lossless", page=True) for width in (3, 5)]
    with pytest.raises(InvalidInputError, match="one dtype and shape"):
        decode_rows_many([(reader, [0]) for reader in readers])
    with pytest.raises(InvalidInputError, match="no rows"):
        decode_rows_many([])
    with pytest.raises(InvalidInputError):
        decode_rows_many([(stored(torch.tensor(1.0), "none"), [0])])
    for rows in ([4], [-5], [0, 99]):
        with pytest.raises(IndexError, match="out of range"):
            readers[0].decode_rows(rows)


@pytest.mark.parametrize("page", [False, True])
@pytest.mark.parametrize("preset", ["none", "lossless", "maximum"])
def test_a_part_reads_only_the_chunks_it_touches(page: bool, preset: str) -> None:
    payload = bytearray(payload_of(normal(torch.float32, (4000, 256)), preset, page=page))
    whole = PayloadReader(bytes(payload)).decode()
    first_frame = parse_header(memoryview(payload)).end
    payload[first_frame + 5] ^= 1
    damaged = PayloadReader(payload)
    assert same_bits(damaged.decode_index(slice(3000, 3010)), whole[3000:3010])
    assert same_bits(damaged.decode_rows([3500, 3999]), whole[[3500, 3999]])
    for read in (damaged.decode, damaged.verify, lambda: damaged.decode_index(0), lambda: damaged.decode_rows([0])):
        with pytest.raises(IntegrityError, match="checksum"):
            read()
