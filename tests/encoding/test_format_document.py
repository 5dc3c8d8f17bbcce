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
        (quantizer, parameters), _, _ = self.stages
        elements = int(np.prod(self.shape))
        values = np.dtype(np.uint8) if quantizer > 2 else VALUES[self.dtype]
        chunk = self.chunk or elements
        self.frame = iter(self.frames)
        sizes = [min(chunk, elements - start) for start in range(0, elements, chunk)]
        out = np.frombuffer(b"".join(self.codes(size, values) for size in sizes), values)
        if quantizer > 2:
            affine = not parameters[0]
            place = self.places(elements, *struct.unpack("<Bi", parameters[1:6]))
            dtype = np.uint16 if parameters[6:7] == b"\1" else np.float32
            arrays = [self.array(int(place[-1]) + 1, dtype)[place] for _ in range(1 + affine)]
            out = LEVELS[quantizer, affine][out] * arrays[0]
            if affine:
                out = out + arrays[1]
        if self.exceptions:
            positions = self.array(self.exceptions, np.uint32)
            out[positions] = self.array(self.exceptions, np.float32)
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

    def array(self, count: int, dtype: Any) -> np.ndarray[Any, Any]:
        """An array in raw frames of 256 KiB; bfloat16 as float32."""
        data = b""
        while len(data) < count * np.dtype(dtype).itemsize:
            data += next(self.frame)[2]
        items = np.frombuffer(data, dtype)
        return (items.astype(np.uint32) << 16).view(np.float32) if dtype is np.uint16 else items

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
