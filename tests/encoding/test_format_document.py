"""FORMAT.md is true: a reader written from it alone, without the package, reads what the package writes."""

from __future__ import annotations

import hashlib
import json
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from blake3 import blake3
from xxhash import xxh3_64_intdigest

from tensordb.encoding import Base, CompressionConfig, PayloadReader, encode
from tensordb.tensors import byte_view

from . import plain_reader
from .plain_reader import codes, parse, read
from .samples import CODECS, DTYPES, normal, payload_of, random_bits, stored
from .test_golden import EXPECTED, GOLDEN

GOLDEN_NAMES = sorted(json.loads(EXPECTED.read_text()))


def check_frames(payload: bytes) -> None:
    """Follow what the document says of the prefix, the frame table and the gaps, checksums included."""
    size, checksum = struct.unpack_from("<IQ", payload, 4)
    assert payload[:4] == b"TDB\x01"
    assert xxh3_64_intdigest(payload[:8] + payload[16:size]) == checksum
    count = len(parse(payload)[0].table) // 12
    table = struct.unpack_from(f"<{count}I{count}Q", payload, size - 12 * count)
    end = size
    for word, expected in zip(table[:count], table[count:], strict=True):
        start = -(-end // 16) * 16
        assert not any(payload[end:start])
        end = start + (0 if word >> 30 == 2 else word & (1 << 30) - 1)
        assert expected == (0 if word >> 30 == 2 else xxh3_64_intdigest(payload[start:end]))
    assert max(end, -(-size // 16) * 16) == len(payload)


def reads_as(payload: bytes, tensor: torch.Tensor, bases: dict[bytes, Any] | None = None) -> bool:
    """Whether the plain reader finds the shape and the bits of this tensor."""
    check_frames(payload)
    found = read(payload, bases)
    return found.shape == tensor.shape and found.tobytes() == byte_view(tensor).tobytes()


def pcodec_block(number: str) -> Any:
    """The decoder of a frame of codec pcodec with fewer than 2**24 numbers, which the plain reader leaves out."""
    wrapped = pytest.importorskip("pcodec.wrapped")

    def decode(block: bytes) -> bytes:
        numbers = np.empty(int.from_bytes(block[:4], "little"), number)
        file, header = wrapped.FileDecompressor.new(block[4:])
        chunk, metadata = file.chunk_decompressor(block[4 + header :], f"{number[0]}{8 * int(number[1])}")
        chunk.read_page_into(block[4 + header + metadata :], len(numbers), numbers)
        return numbers.tobytes()

    return decode


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_a_reader_written_from_the_document_reads_older_payloads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    payload, expected = (GOLDEN / f"{name}.payload").read_bytes(), json.loads(EXPECTED.read_text())[name]
    check_frames(payload)
    codec, parameters = parse(payload)[0].stages[2]
    if codec == 6:
        kinds = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
        monkeypatch.setattr(plain_reader, "CODECS", [*plain_reader.CODECS, pcodec_block(kinds[parameters[1]])])
    found = read(payload)
    bare = f"uint{8 * found.itemsize}"
    assert found.dtype == np.dtype(expected["dtype"] if expected["dtype"] in np.sctypeDict else bare)
    assert list(found.shape) == expected["shape"]
    assert hashlib.sha256(found.tobytes()).hexdigest() == expected["sha256"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (5, 0), (300, 17)], ids=str)
def test_a_reader_written_from_the_document_reads_every_dtype(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = random_bits(dtype, shape)
    for config in CODECS:
        if config.compression not in ("pcodec", "best") and not dict(config.compression_kwargs).get("filter"):
            assert reads_as(payload_of(tensor, config), tensor)


FORCED = [
    CompressionConfig(codec, compression_kwargs={"filter": name})
    for codec in ("zstd", "lz4")
    for name in ("planes", "narrow", "bit_pack", "stride_delta", "zero_bitmap")
]


@pytest.mark.parametrize("page", [False, True])
@pytest.mark.parametrize("shape", [(7,), (300, 400), (90, 2, 24)], ids=str)
@pytest.mark.parametrize(
    "config",
    [
        CompressionConfig(),
        CompressionConfig("none"),
        CompressionConfig("zstd"),
        CompressionConfig("lz4"),
        *FORCED,
    ],
    ids=repr,
)
def test_a_reader_written_from_the_document_reads_lossless_payloads(
    config: CompressionConfig, shape: tuple[int, ...], page: bool
) -> None:
    for tensor in (
        normal(torch.float32, shape),
        normal(torch.float16, shape),
        torch.zeros(shape),
        normal(torch.float32, shape).relu().double(),
        (normal(torch.float32, shape) * 99).long(),
        (normal(torch.float32, shape) * 999).short(),
        (normal(torch.float32, shape) * 20 + 128).to(torch.uint8),
        (normal(torch.float32, shape) * 20).abs().to(torch.uint8) & 3,
        normal(torch.float32, shape) > 0,
    ):
        assert reads_as(payload_of(tensor, config, page=page), tensor)


QUANTIZATIONS = [
    ("int8", {"granularity": 64}),
    ("int8", {"granularity": "per_channel", "axis": -1, "mode": "symmetric", "scale_dtype": "bfloat16"}),
    ("int4", {"granularity": 32, "scale_dtype": "bfloat16"}),
    ("int4", {"granularity": "per_tensor", "mode": "symmetric"}),
    ("nf4", {}),
    ("fp8_e4m3", {"granularity": "per_row"}),
    ("fp8_e5m2", {"granularity": 100}),
    ("uniform", {"step": 0.1}),
    ("uniform", {"max_error": 0.002}),
    ("uniform", {"target_bits": 5, "scale_dtype": "bfloat16"}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "kwargs"), [*QUANTIZATIONS, ("fp16", {}), ("bf16", {})], ids=str)
@pytest.mark.parametrize("page", [False, True])
def test_a_reader_written_from_the_document_reads_quantized_payloads(
    name: str, kwargs: dict[str, Any], page: bool, dtype: torch.dtype
) -> None:
    config = CompressionConfig("zstd", name, quantization_kwargs=kwargs)
    tensor = normal(dtype, (300, 2, 128))
    tensor[7, 1, 3], tensor[299, 0, 0] = torch.nan, -torch.inf
    reader = stored(tensor, config, page=page)
    assert reader.encoding.quantization == name or dtype in (torch.float16, torch.bfloat16)
    assert reads_as(payload_of(tensor, config, page=page), reader.decode())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("quantization", ["fp16", "bf16"])
def test_a_reader_written_from_the_document_reads_the_same_not_a_numbers(quantization: str, dtype: torch.dtype) -> None:
    tensor = normal(torch.float32, (300,))
    tensor.view(torch.int32)[:4] = torch.tensor([0x7FC00000, -1, 0x7FABCDEF, -4194303], dtype=torch.int32)
    reader = stored(tensor.to(dtype), CompressionConfig("zstd", quantization))
    assert reader.encoding.quantization == quantization
    assert reads_as(payload_of(tensor.to(dtype), CompressionConfig("zstd", quantization)), reader.decode())


def content_id(payload: bytes, bases: dict[bytes, Any]) -> bytes:
    """The content id of a payload with small dimensions, as the document defines it."""
    spec, group = parse(payload)
    number, parameters = spec.stages[0]
    quantizer = bytes((number, len(parameters))) + parameters if number else b"\0"
    flags = (spec.page if number else 0) | (8 if spec.exceptions else 0)
    descriptor = bytes((spec.dtype, flags, len(spec.shape))) + b"".join(map(varint, spec.shape)) + quantizer + bytes(3)
    digest = blake3(b"tensordb content 1\0" + descriptor + (varint(spec.exceptions) if spec.exceptions else b""))
    digest.update(codes(spec, group, bases).tobytes())
    with suppress(StopIteration):
        while True:
            digest.update(group(0))  # what is left is stored raw
    return digest.digest()


def varint(number: int) -> bytes:
    return bytes((number,)) if number < 128 else bytes((number & 127 | 128,)) + varint(number >> 7)


@pytest.mark.parametrize("page", [False, True])
@pytest.mark.parametrize("quantization", ["none", "int8", "uniform", "bf16"])
def test_identities_can_be_computed_from_the_document(quantization: str, page: bool) -> None:
    kwargs = {"step": 0.1} if quantization == "uniform" else {}
    tensor = normal(torch.float32, (300, 400))
    tensor[7, 3] = torch.nan
    encoded = encode(tensor, CompressionConfig("zstd", quantization, quantization_kwargs=kwargs), page=page)
    payload = b"".join(encoded.buffers)
    assert content_id(payload, {}) == encoded.content_id
    descriptor = payload[16 : int.from_bytes(payload[4:8], "little") - len(parse(payload)[0].table)]
    assert blake3(encoded.content_id + descriptor).digest(16) == encoded.object_id


CHANGED = [("none", dtype) for dtype in (torch.float32, torch.bfloat16, torch.int8, torch.complex128)]


@pytest.mark.parametrize(
    ("quantization", "dtype"), [*CHANGED, ("int8", torch.float32), ("bf16", torch.float32)], ids=str
)
def test_a_reader_written_from_the_document_reads_what_changed_since_a_base(
    quantization: str, dtype: torch.dtype
) -> None:
    first = (normal(torch.float32, (4, 65536)) * 900).to(dtype)
    second = first.clone()
    second[1], second[2, 5] = (normal(torch.float32, (65536,), seed=7) * 900).to(dtype), 1
    config = CompressionConfig("auto", quantization)
    base = encode(first, config)
    reader = PayloadReader(b"".join(base.buffers))
    changed = encode(second, config, base=Base(base.content_id, reader))
    assert "delta" in changed.encoding.compression
    payload = b"".join(changed.buffers)
    bases = {base.content_id: codes(*parse(b"".join(base.buffers)), {})}
    whole = PayloadReader(payload, bases={base.content_id: reader}.__getitem__).decode()
    assert reads_as(payload, whole, bases)
    assert content_id(payload, bases) == changed.content_id
