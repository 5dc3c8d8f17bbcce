"""Rows of pages are written where they belong, exactly, or not at all."""

import numpy as np
import pytest
import torch

from tensordb.encoding import PayloadReader, kernels
from tensordb.encoding.spreading import spread_bytes, spread_rows
from tensordb.errors import IntegrityError
from tensordb.model import TensorSpec
from tensordb.tensors import byte_view, dtype_from_name, nbytes_of

from .samples import DTYPES, payload_of, random_bits, stored

pytest.importorskip("numba")
COUNT, GUARD = 70, 64


@pytest.fixture(autouse=True)
def _loaded() -> None:
    assert kernels.load()


def spread(readers: list[PayloadReader], rows: list[list[int]]) -> torch.Tensor | None:
    """Return the rows, each written into a place of its own between bytes that must stay as they are."""
    spec = TensorSpec(readers[0].spec.dtype, readers[0].spec.shape[1:])
    size = nbytes_of(spec)
    count = sum(map(len, rows))
    room = np.full((count, size + GUARD), 0xA5, np.uint8)
    places = np.random.default_rng(0).permutation(count)
    targets = room.ctypes.data + (places * room.strides[0]).astype(np.uint64)
    requests = [(reader, np.array(each)) for reader, each in zip(readers, rows, strict=True)]
    if not spread_rows(requests, targets):
        assert (room == 0xA5).all()
        return None
    assert (room[:, size:] == 0xA5).all()
    return torch.from_numpy(room[places, :size].copy()).view(dtype_from_name(spec.dtype)).reshape(count, *spec.shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("preset", ["none", "fast", "lossless", "archive"])
def test_rows_of_every_dtype_arrive_where_they_belong(dtype: torch.dtype, preset: str) -> None:
    stack = random_bits(dtype, (COUNT, 16, 24))
    rows = [[*range(COUNT)], [3], [69, 0, 7, 7, 68]]
    found = spread([stored(stack, preset, page=True)] * 3, rows)
    if found is not None:
        raw = byte_view(stack).reshape(COUNT, -1)[[row for each in rows for row in each]]
        assert np.array_equal(byte_view(found).reshape(raw.shape), raw)
    else:
        assert preset == "archive" or dtype.is_complex or not dtype.is_floating_point


@pytest.mark.parametrize("stack", [torch.randn(COUNT, 300), 1 + torch.rand(COUNT, 300) / 4])
def test_floats_are_spread_with_their_constant_and_compressed_frames(stack: torch.Tensor) -> None:
    found = spread([stored(stack, "lossless", page=True)], [[*range(COUNT)][::-1]])
    assert found is not None
    assert torch.equal(found, stack.flip(0))


@pytest.mark.parametrize("shape", [(3, 20, 20), (20, 20, 3), (40, 40)])
def test_images_are_summed_up_where_they_belong(shape: tuple[int, ...]) -> None:
    ramp = torch.arange(shape[0] * shape[1] * (shape[2] if len(shape) > 2 else 1)).reshape(shape)
    stack = (ramp + torch.randint(0, 3, (COUNT, *shape))).to(torch.uint8)
    reader = stored(stack, "lossless", page=True)
    assert reader.encoding.compression.startswith("stride_delta")
    found = spread([reader], [[5, *range(COUNT)]])
    assert found is not None
    assert torch.equal(found, stack[[5, *range(COUNT)]])


@pytest.mark.parametrize("preset", ["int8_only", "balanced"])
def test_quantized_pages_are_left_to_others(preset: str) -> None:
    assert spread([stored(torch.randn(COUNT, 300), preset, page=True)], [[0, 1]]) is None


def test_what_is_no_page_or_is_stored_in_another_way_is_left_to_others() -> None:
    stack = torch.randn(COUNT, 300)
    assert spread([stored(stack, "lossless")], [[0, 1]]) is None
    pages = [stored(stack, preset, page=True) for preset in ("lossless", "none")]
    assert spread(pages, [[0], [1]]) is None


def test_without_loops_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ready_to_spread", lambda nbytes: None)
    assert spread([stored(torch.randn(COUNT, 300), "lossless", page=True)], [[0, 1]]) is None
    assert not spread_bytes(np.zeros((1, 8), np.uint8), np.zeros(1, np.uint64))


@pytest.mark.parametrize("rows", [[0, COUNT], [-1, 3]])
def test_rows_that_are_not_there_are_refused(rows: list[int]) -> None:
    with pytest.raises(IndexError, match="out of range for 70 rows"):
        spread([stored(torch.randn(COUNT, 300), "lossless", page=True)], [rows])


@pytest.mark.parametrize("preset", ["none", "lossless"])
def test_every_byte_that_is_read_is_verified(preset: str) -> None:
    stack = torch.randn(COUNT, 300)
    payload = payload_of(stack, preset, page=True)
    begin = len(payload) - sum(PayloadReader(payload)._chunks.frames.sizes) // 2
    for place in (begin, len(payload) - 1):
        damaged = bytearray(payload)
        damaged[place] ^= 1
        with pytest.raises(IntegrityError, match="checksum"):
            spread([PayloadReader(bytes(damaged))], [[*range(COUNT)]])
