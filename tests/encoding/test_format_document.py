"""FORMAT.md is true: a reader written from it alone, without the package, reads what the package writes."""

from __future__ import annotations

import struct
from typing import Any

import lz4.block
import numpy as np
import pytest
import torch
import xxhash
import zstandard

from tensordb.encoding import CompressionConfig

from .samples import normal, payload_of, same_bits, stored

WORDS = {1: (np.uint32, np.float32, 4), 3: (np.uint16, np.float16, 2), 16: (None, np.int64, 8)}
BYTES = np.arange(256)
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def fp8(exponent_bits: int) -> np.ndarray[Any, Any]:
    """The numbers of an 8-bit float, written from its definition."""
    mantissa = 7 - exponent_bits
    bias = (1 << exponent_bits - 1) - 1
    exponent, fraction = BYTES % 128 >> mantissa, BYTES % (1 << mantissa) / (1 << mantissa)
    size = np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - bias))
    return np.where(BYTES > 127, -size, size).astype(np.float32)


SIGNED = np.where(BYTES > 127, BYTES - 256, BYTES).astype(np.float32)
LEVELS = {
    (3, True): BYTES.astype(np.float32),
    (3, False): SIGNED,
    (4, True): BYTES.astype(np.float32),
    (4, False): BYTES.astype(np.float32) - 8,
    (5, False): np.array(NF4 + [0.0] * 240, np.float32),
    (6, False): fp8(4),
    (7, False): fp8(5),
    (8, False): SIGNED,
}


class Plain:
    """The document, followed line by line."""

    def __init__(self, payload: bytes) -> None:
        size, checksum = struct.unpack_from("<IQ", payload, 4)
        assert payload[:4] == b"TDB\x01"
        assert xxhash.xxh3_64_intdigest(payload[:8] + payload[16:size]) == checksum
        self.payload, self.at = payload, 16
        self.dtype, self.flags, rank = self.byte(), self.byte(), self.byte()
        self.shape = [self.varint() for _ in range(rank)]
        self.stages = [self.stage() for _ in range(3)]
        self.chunk = self.varint()
        self.at += 16 * bool(self.flags & 2)
        if self.flags & 4:
            length = self.varint()
            self.at += length
        self.exceptions = self.varint() if self.flags & 8 else 0
        count = (size - self.at) // 12
        words = struct.unpack_from(f"<{count}I", payload, self.at)
        sums = struct.unpack_from(f"<{count}Q", payload, self.at + 4 * count)
        self.frames = []
        end = size
        for word, total in zip(words, sums, strict=True):
            kind, value = word >> 30, word & (1 << 30) - 1
            start = (end + 15) // 16 * 16
            end = start + (0 if kind == 2 else value)
            assert kind == 2 or xxhash.xxh3_64_intdigest(payload[start:end]) == total
            self.frames.append((kind, value, payload[start:end]))
        assert end == len(payload)

    def byte(self) -> int:
        self.at += 1
        return self.payload[self.at - 1]

    def varint(self) -> int:
        number = shift = 0
        while True:
            byte = self.byte()
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number

    def stage(self) -> tuple[int, bytes]:
        number = self.byte()
        length = self.varint() if number else 0
        self.at += length
        return number, self.payload[self.at - length : self.at]

    def content(self, frame: tuple[int, int, bytes], size: int) -> bytes:
        kind, value, data = frame
        if kind == 2:
            return bytes([value]) * size
        if kind == 0:
            return data
        if self.stages[2][0] == 1:
            return zstandard.ZstdDecompressor().decompress(data)
        return bytes(lz4.block.decompress(data, uncompressed_size=size))

    def decode(self) -> np.ndarray[Any, Any]:
        (quantizer, parameters), (filter_, sizes), _ = self.stages
        elements = int(np.prod(self.shape))
        word, values, width = (None, np.dtype(np.uint8), 1) if quantizer > 2 else WORDS[self.dtype]
        groups = list(sizes) if filter_ else [1]
        chunk = self.chunk or elements
        frames = iter(self.frames)
        codes = b""
        for start in range(0, elements, chunk):
            count = min(chunk, elements - start)
            share = count * width // sum(groups)
            parts = [self.content(next(frames), share * size) for size in groups]
            if filter_:
                record = int(np.prod(self.shape[1:])) if self.flags & 1 else count
                shaped = [np.frombuffer(p, np.uint8).reshape(-1, k, record) for p, k in zip(parts, groups, strict=True)]
                planes = np.concatenate(shaped, 1).transpose(0, 2, 1)[..., ::-1]
                rotated = np.ascontiguousarray(planes).reshape(-1).view(word)
                codes += (rotated >> 1 | rotated << (8 * width - 1)).astype(word).tobytes()
            else:
                codes += parts[0]
        out = np.frombuffer(codes, values)
        if quantizer > 2:
            affine = not parameters[0]
            place = self.places(elements, *struct.unpack("<Bi", parameters[1:6]))
            dtype = np.uint16 if parameters[6:7] == b"\1" else np.float32
            arrays = [self.array(frames, int(place[-1]) + 1, dtype)[place] for _ in range(1 + affine)]
            out = LEVELS[quantizer, affine][out] * arrays[0]
            if affine:
                out = out + arrays[1]
        if self.exceptions:
            positions = self.array(frames, self.exceptions, np.uint32)
            out[positions] = self.array(frames, self.exceptions, np.float32)
        return out.reshape(self.shape)

    def places(self, elements: int, kind: int, value: int) -> np.ndarray[Any, Any]:
        """Which parameter each element has."""
        shape = self.shape[1:] if self.flags & 1 else self.shape
        size = int(np.prod(shape))
        row = int(np.prod(shape[1:]))
        if kind == 1:
            inner, count = int(np.prod(shape[value % len(shape) + 1 :])), shape[value]
        elif kind == 2:
            inner, count = value, -(-size // value)
        elif kind == 3 and len(shape) > 1 and row >= 64:
            inner, count = row, shape[0]
        else:
            inner, count = size, 1
        record, within = np.divmod(np.arange(elements), size)
        return record * count + within // inner % count

    def array(self, frames: Any, count: int, dtype: Any) -> np.ndarray[Any, Any]:
        """An array in raw frames of 256 KiB; bfloat16 as float32."""
        data = b""
        while len(data) < count * np.dtype(dtype).itemsize:
            data += next(frames)[2]
        items = np.frombuffer(data, dtype)
        return (items.astype(np.uint32) << 16).view(np.float32) if dtype is np.uint16 else items


@pytest.mark.parametrize("page", [False, True])
@pytest.mark.parametrize("shape", [(7,), (300, 400), (90, 2, 24)], ids=str)
@pytest.mark.parametrize(
    "config",
    [
        CompressionConfig(),
        CompressionConfig("none"),
        CompressionConfig("zstd"),
        CompressionConfig("lz4"),
        CompressionConfig("lz4", compression_kwargs={"filter": "planes"}),
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
        (normal(torch.float32, shape) * 99).long(),
    ):
        assert same_bits(torch.from_numpy(Plain(payload_of(tensor, config, page=page)).decode().copy()), tensor)


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


@pytest.mark.parametrize(("name", "kwargs"), QUANTIZATIONS, ids=str)
@pytest.mark.parametrize("page", [False, True])
def test_a_reader_written_from_the_document_reads_quantized_payloads(
    name: str, kwargs: dict[str, Any], page: bool
) -> None:
    config = CompressionConfig("zstd", name, quantization_kwargs=kwargs)
    tensor = normal(torch.float32, (300, 2, 128))
    tensor[7, 1, 3], tensor[299, 0, 0] = torch.nan, -torch.inf
    reader = stored(tensor, config, page=page)
    assert reader.encoding.quantization == name
    read = torch.from_numpy(Plain(payload_of(tensor, config, page=page)).decode().copy())
    assert same_bits(read, reader.decode())
