"""Frames laid out at once are those that are laid out one by one, byte for byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tensordb.encoding import PayloadReader, encode, get_compression_preset, kernels, packing
from tensordb.encoding.codecs import Codec, codec_named
from tensordb.encoding.frames import CONSTANT, FrameList, Piece, pieces_of

pytest.importorskip("numba")

SIZE = 1_000
"""No multiple of the alignment, so that there is padding."""


def kinds_of_pieces() -> np.ndarray[Any, np.dtype[np.uint8]]:
    generator = np.random.default_rng(0)
    pieces = [generator.integers(0, 256, SIZE) for _ in range(4)]
    pieces += [generator.integers(100, 104, SIZE) for _ in range(4)]
    pieces += [np.full(SIZE, 7), np.arange(SIZE) // 500, np.full(SIZE, 0)]
    ends_alike = generator.integers(0, 256, SIZE)
    ends_alike[0] = ends_alike[-1] = 9
    return np.concatenate([*pieces, ends_alike]).astype(np.uint8)


@pytest.fixture(autouse=True)
def compiled() -> None:
    assert kernels.load()


@pytest.mark.parametrize("last", [0, 4, 8])
@pytest.mark.parametrize("keep_below", [0.0, 0.985, 1.0])
@pytest.mark.parametrize(
    "codec", [codec_named("zstd", strategy="huffman"), codec_named("zstd"), codec_named("lz4")], ids=str
)
def test_columns_become_the_same_frames(codec: Codec, keep_below: float, last: int) -> None:
    groups = [kinds_of_pieces(), np.roll(kinds_of_pieces(), SIZE * last)]  # the last frame of all is of each kind
    columns = [pieces_of(data, SIZE, codec, keep_below) for data in groups]
    pieces: list[Piece] = [piece for chunk in zip(*columns, strict=True) for piece in chunk]
    expected = FrameList()
    expected.add(pieces)
    found = packing.packed([packing.column_of(data, SIZE, codec, keep_below) for data in groups], packing.ready())
    assert found.words == expected.words
    assert found.checksums == expected.checksums
    assert (found.nbytes, found.padding) == (expected.nbytes, expected.padding)
    assert b"".join(found.buffers) == b"".join(map(bytes, expected.buffers))
    assert len(found.buffers) <= 2
    found.finish()
    expected.finish()
    assert b"".join(found.buffers) == b"".join(map(bytes, expected.buffers))


def test_frames_of_constants_alone_have_no_bytes() -> None:
    column = packing.column_of(np.zeros(SIZE * 8, np.uint8), SIZE, codec_named("zstd"), 1.0)
    found = packing.packed([column], packing.ready())
    assert (found.buffers, found.nbytes, found.padding) == ([], 0, 0)
    assert found.words == [CONSTANT << 30] * 8


@pytest.mark.parametrize("preset", ["lossless", "fast", "balanced", "maximum", "none"])
@pytest.mark.parametrize(("rows", "columns"), [(3_000, 384), (700, 7), (20_000, 1)])
def test_a_page_has_the_same_bytes_without_compiled_loops(
    monkeypatch: pytest.MonkeyPatch, preset: str, rows: int, columns: int
) -> None:
    page = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    page[rows // 2 :] = 0
    config = get_compression_preset(preset)
    payload = b"".join(encode(page, config, page=True).buffers)
    monkeypatch.setattr(kernels, "ready", lambda nbytes: None)
    plain = b"".join(map(bytes, encode(page, config, page=True).buffers))
    assert payload == plain
    if preset in ("lossless", "fast", "none"):
        assert torch.equal(PayloadReader(memoryview(payload)).decode(), page)
