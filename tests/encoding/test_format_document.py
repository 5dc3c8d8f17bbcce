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
        word, values, width = (None, np.dtype(np.uint8), 1) if quantizer == 3 else WORDS[self.dtype]
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
        if quantizer == 3:
            scales, minima = (np.frombuffer(next(frames)[2], np.float32) for _ in range(2))
            group = struct.unpack("<i", parameters[2:])[0]
            place = np.arange(elements) // group
            out = minima[place] + out.astype(np.float32) * scales[place]
        return out.reshape(self.shape)


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


def test_a_reader_written_from_the_document_reads_int8_groups() -> None:
    tensor = normal(torch.float32, (300, 256))
    config = CompressionConfig("zstd", "int8", quantization_kwargs={"granularity": 64})
    for page in (False, True):
        read = torch.from_numpy(Plain(payload_of(tensor, config, page=page)).decode().copy())
        assert torch.allclose(read, stored(tensor, config, page=page).decode(), rtol=0, atol=1e-7)
