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

VALUES = {
    number: np.dtype(name)
    for number, name in {1: "f4", 2: "f8", 3: "f2", 4: "u2", 14: "i2", 16: "i8", 17: "u1", 21: "?"}.items()
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
        (quantizer, parameters), _, _ = self.stages
        elements = int(np.prod(self.shape))
        values = np.dtype(np.uint8) if quantizer == 3 else VALUES[self.dtype]
        chunk = self.chunk or elements
        self.frame = iter(self.frames)
        sizes = [min(chunk, elements - start) for start in range(0, elements, chunk)]
        out = np.frombuffer(b"".join(self.codes(size, values) for size in sizes), values)
        if quantizer == 3:
            scales, minima = (np.frombuffer(next(self.frame)[2], np.float32) for _ in range(2))
            place = np.arange(elements) // struct.unpack("<i", parameters[2:])[0]
            out = minima[place] + out.astype(np.float32) * scales[place]
        return out.reshape(self.shape)

    def group(self, size: int) -> np.ndarray[Any, Any]:
        return np.frombuffer(self.content(next(self.frame), size), np.uint8)

    def codes(self, count: int, values: np.dtype[Any]) -> bytes:
        """One chunk of `count` elements."""
        (number, given), width = self.stages[1], values.itemsize
        record = int(np.prod(self.shape[1:])) if self.flags & 1 else count
        word = np.dtype(f"u{width}")
        if number == 1:
            return planes([self.group(count * size) for size in given], given, record, word).tobytes()
        if number == 2:
            return self.group(width).tobytes() * count
        if number == 3:
            bits = np.unpackbits(self.group(-(-count * given[0] // 8)), bitorder="little")
            each = bits[: count * given[0]].reshape(count, given[0])
            return (each << np.arange(given[0])).sum(1).astype(np.uint8).tobytes()
        if number == 4:
            narrow, grouped, base = struct.unpack("<BBQ", given)
            if grouped:
                stored = np.stack([self.group(count) for _ in range(narrow)][::-1], 1).reshape(-1)
            else:
                stored = self.group(count * narrow)
            return (stored.view(f"u{narrow}").astype(word) + word.type(base)).tobytes()
        if number == 5:
            rows = self.group(count).reshape(-1, record).copy()
            for stride in struct.unpack(f"<{len(given) // 4}I", given)[::-1]:
                for at in range(stride, record):
                    rows[:, at] += rows[:, at - stride]
            return rows.tobytes()
        if number == 6:
            present = np.unpackbits(self.group(-(-count // 8)), bitorder="little")[:count] > 0
            kept = int(present.sum())
            groups = [self.group(kept * size) for size in given]
            words = np.zeros(count, word)
            words[present] = groups[0] if width == 1 else planes(groups, given, kept, word)
            return words.tobytes()
        return self.group(count * width).tobytes()


def planes(groups: list[np.ndarray[Any, Any]], sizes: bytes, record: int, word: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Words from their planes, for records of so many words."""
    if not record:
        return np.zeros(0, word)
    shaped = [group.reshape(-1, size, record) for group, size in zip(groups, sizes, strict=True)]
    joined = np.concatenate(shaped, 1).transpose(0, 2, 1)[..., ::-1]
    rotated = np.ascontiguousarray(joined).reshape(-1).view(word)
    return (rotated >> 1 | rotated << (8 * word.itemsize - 1)).astype(word)


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
        assert same_bits(torch.from_numpy(Plain(payload_of(tensor, config, page=page)).decode().copy()), tensor)


def test_a_reader_written_from_the_document_reads_int8_groups() -> None:
    tensor = normal(torch.float32, (300, 256))
    config = CompressionConfig("zstd", "int8", quantization_kwargs={"granularity": 64})
    for page in (False, True):
        read = torch.from_numpy(Plain(payload_of(tensor, config, page=page)).decode().copy())
        assert torch.allclose(read, stored(tensor, config, page=page).decode(), rtol=0, atol=1e-7)
