"""What every codec promises, whatever its parameters: bytes back exactly, and an error for anything else."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np
import pytest
import zstandard

from tensordb.encoding.codecs import CODEC_NAMES, Codec, codec_named, codec_with_id
from tensordb.errors import FormatError, IntegrityError, InvalidInputError, UnknownPresetError

CODECS = [
    codec_named("none"),
    *(codec_named("zstd", level=level) for level in (1, 3, 22)),
    codec_named("zstd", strategy="huffman"),
    codec_named("lz4"),
    codec_named("lz4", level=64),
    *(codec_named("lz4", mode="hc", level=level) for level in (1, 12)),
    *(codec_named(name, level=level) for name in ("gzip", "zlib") for level in (1, 9)),
    *(codec_named("lzma", level=level) for level in (0, 9)),
    *(codec_named("pcodec", level=level) for level in (0, 12)),
]
INPUTS = {
    "one": b"x",
    "zeros": bytes(100_000),
    "text": b"the quick brown fox " * 500,
    "noise": np.random.default_rng(0).bytes(50_000),
}


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@pytest.mark.parametrize("data", INPUTS.values(), ids=INPUTS)
def test_bytes_come_back(codec: Codec, data: bytes) -> None:
    assert codec.decompress(codec.compress(data), len(data)) == data
    assert codec.decompress(memoryview(codec.compress(memoryview(data))), len(data)) == data


@pytest.mark.parametrize("number", ["float64", "int32", "float16", "uint8"])
def test_pcodec_takes_numbers_from_any_address(number: str) -> None:
    data = INPUTS["noise"][:4800]
    codec = codec_named("pcodec", number=number)
    assert codec.decompress(codec.compress(memoryview(b"x" + data)[1:]), len(data)) == data


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_a_wrong_size_is_an_integrity_error(codec: Codec) -> None:
    data = INPUTS["text"]
    for size in (len(data) - 1, len(data) + 1, 1):
        with pytest.raises(IntegrityError):
            codec.decompress(codec.compress(data), size)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_cut_short_or_followed_by_more_is_an_integrity_error(codec: Codec) -> None:
    data = INPUTS["text"]
    compressed = codec.compress(data)
    for damaged in (compressed[:-1], compressed[: len(compressed) // 2], b"", compressed + b"\0"):
        with pytest.raises(IntegrityError):
            codec.decompress(damaged, len(data))


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_its_parameters_rebuild_it(codec: Codec) -> None:
    described = json.loads(json.dumps(codec.to_dict()))
    assert codec_named(described["name"], **described["configuration"]) == codec
    assert codec_with_id(codec.id, codec.pack()) == codec


def test_ids_are_distinct() -> None:
    assert len({codec_named(name).id for name in CODEC_NAMES}) == len(CODEC_NAMES)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("zstd", {"level": 0}),
        ("zstd", {"level": 23}),
        ("zstd", {"level": "3"}),
        ("zstd", {"level": True}),
        ("zstd", {"strategy": "brute"}),
        ("zstd", {"quality": 3}),
        ("lz4", {"level": 65}),
        ("lz4", {"mode": "hc", "level": 13}),
        ("lz4", {"mode": "slow"}),
        ("gzip", {"level": 10}),
        ("zlib", {"level": 0}),
        ("lzma", {"level": 10}),
        ("none", {"level": 1}),
    ],
)
def test_a_parameter_out_of_range_is_refused(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        codec_named(name, **parameters)


def test_an_unknown_codec_lists_those_that_exist() -> None:
    with pytest.raises(UnknownPresetError, match="zstd, lz4, gzip, zlib, lzma"):
        codec_named("brotli")


def test_an_unknown_stored_codec_is_a_format_error() -> None:
    for number, packed in ((99, b""), (1, b""), (1, b"\x63\x00"), (0, b"x")):
        with pytest.raises(FormatError):
            codec_with_id(number, packed)


def test_frames_are_what_other_tools_write_and_read() -> None:
    data = INPUTS["text"]
    frame = codec_named("zstd", strategy="huffman").compress(data)
    parameters = zstandard.get_frame_parameters(frame)
    assert parameters.content_size == len(data)
    assert not parameters.has_checksum
    assert parameters.dict_id == 0
    assert parameters.window_size <= max(len(data), 1024)
    assert zlib.decompress(codec_named("gzip").compress(data), zlib.MAX_WBITS + 16) == data
    assert codec_named("zlib").decompress(zlib.compress(data, 4), len(data)) == data


def test_a_frame_that_claims_more_than_it_should_is_refused_before_memory_is_taken() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 26))
    with pytest.raises(IntegrityError, match="claims"):
        codec_named("zstd").decompress(bomb, 1000)
