"""A damaged or forged payload gives an error or the right tensor, never a wrong one, in bounded memory."""

from __future__ import annotations

import math
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import xxhash
import zstandard

from tensordb.encoding import COMPRESSION_PRESETS, CompressionConfig, PayloadReader, encode
from tensordb.encoding.format import Descriptor, StageRecord, pack_header, parse_header
from tensordb.encoding.frames import COMPRESSED, CONSTANT, RAW
from tensordb.errors import FormatError, IntegrityError, InvalidInputError
from tensordb.model import MeasuredError, TensorSpec

from .samples import normal, payload_of, same_bits

REFUSALS = (IntegrityError, FormatError)
READS: list[Callable[[PayloadReader], torch.Tensor]] = [
    PayloadReader.decode,
    lambda reader: reader.decode_index(slice(None)),
    lambda reader: reader.decode_rows(range(reader.spec.shape[0])),
]


PAGED = ["none", "fast", "lossless", "archive", "fp16_only", "int8_only", "q4"]


def small(preset: str, columns: int) -> torch.Tensor:
    """A tensor that is stored in few bytes of which each is flipped: frames that are raw, compressed and constant."""
    return normal(torch.bfloat16, (2 if preset == "none" else 6, columns)).float()


def flipped(payload: bytes, position: int) -> bytearray:
    """The payload with one bit changed."""
    damaged = bytearray(payload)
    damaged[position // 8] ^= 1 << position % 8
    return damaged


def assert_right_or_refused(damaged: bytearray, right: torch.Tensor, position: int) -> None:
    """Check that every way to read it gives the right tensor or an error, each with a reader that read nothing yet."""
    for read in READS:
        try:
            reader = PayloadReader(damaged)
        except REFUSALS:
            return  # whoever wants to read it
        try:
            assert same_bits(read(reader), right), position
        except REFUSALS:
            continue


@pytest.mark.parametrize(
    ("preset", "page"),
    # Pages differ from tensors in how rows are found among frames: raw, compressed, with scales of rows, with codes.
    [*((preset, False) for preset in COMPRESSION_PRESETS), *((preset, True) for preset in PAGED)],
)
def test_no_flipped_bit_gives_a_wrong_tensor(preset: str, page: bool) -> None:
    payload = payload_of(small(preset, 32), preset, page=page)
    right = PayloadReader(payload).decode()
    for position in range(len(payload) * 8):
        assert_right_or_refused(flipped(payload, position), right, position)


@pytest.mark.parametrize("preset", COMPRESSION_PRESETS)
def test_verify_finds_every_flipped_bit(preset: str) -> None:
    payload = payload_of(small(preset, 33), preset)
    for position in range(len(payload) * 8):
        with pytest.raises(REFUSALS):
            PayloadReader(flipped(payload, position)).verify()


@pytest.mark.parametrize("preset", COMPRESSION_PRESETS)
def test_a_payload_cut_short_or_followed_by_more_is_noticed_at_once(preset: str) -> None:
    payload = payload_of(normal(torch.float32, (6, 32)), preset)
    for cut in range(len(payload)):
        with pytest.raises(REFUSALS):
            PayloadReader(payload[:cut])
    for extra in (b"\0", b"\0" * 16, payload):
        with pytest.raises(REFUSALS):
            PayloadReader(payload + extra)


def test_what_is_no_payload_is_a_format_error() -> None:
    with pytest.raises(FormatError, match="not a tensordb payload"):
        PayloadReader(b"PK\x03\x04" + bytes(100))
    newer = bytearray(payload_of(torch.ones(4), "none"))
    newer[3] = 2
    with pytest.raises(IntegrityError):  # a damaged version byte is damage
        PayloadReader(newer)
    size = int.from_bytes(newer[4:8], "little")
    newer[8:16] = xxhash.xxh3_64_digest(bytes(newer[:8] + newer[16:size]))[::-1]
    with pytest.raises(FormatError, match="newer release"):
        PayloadReader(newer)


def forged(descriptor: Descriptor, words: list[int], frames: bytes = b"") -> bytes:
    """A payload with a true checksum over a header that lies."""
    return pack_header(descriptor.pack(), np.array(words, np.uint32), np.zeros(len(words), np.uint64)) + frames


PLAIN = Descriptor(TensorSpec("float32", (4,)))
FORGERIES = {
    "huge shape": forged(replace(PLAIN, spec=TensorSpec("float32", (1 << 40,))), [16], bytes(16)),
    "huge shape in chunks": forged(replace(PLAIN, spec=TensorSpec("float32", (1 << 40,)), chunk_elements=65536), [16]),
    "overflowing shape": forged(replace(PLAIN, spec=TensorSpec("float32", (1 << 40, 1 << 40))), [16], bytes(16)),
    "huge empty shape": forged(replace(PLAIN, spec=TensorSpec("float32", (1 << 69, 0))), []),
    "empty shape that overflows": forged(replace(PLAIN, spec=TensorSpec("float32", (1 << 60, 0, 1 << 60))), []),
    "negative error": forged(replace(PLAIN, error=MeasuredError(-1.0, 0.0)), [16], bytes(16)),
    "error that is not a number": forged(replace(PLAIN, error=MeasuredError(0.5, math.nan)), [16], bytes(16)),
    "huge constant": forged(replace(PLAIN, spec=TensorSpec("float64", (1 << 50,))), [CONSTANT << 30]),
    "huge page": forged(replace(PLAIN, spec=TensorSpec("float32", (1 << 30, 1 << 20)), page=True), [16], bytes(16)),
    "page without dimension": forged(replace(PLAIN, spec=TensorSpec("float32", ()), page=True), [4], bytes(4)),
    "frame longer than its group": forged(PLAIN, [17], bytes(17)),
    "frame shorter than its group": forged(PLAIN, [15], bytes(15)),
    "compressed frame as long as its group": forged(PLAIN, [COMPRESSED << 30 | 16], bytes(16)),
    "empty compressed frame": forged(PLAIN, [COMPRESSED << 30]),
    "constant of more than a byte": forged(PLAIN, [CONSTANT << 30 | 256]),
    "unknown kind": forged(PLAIN, [3 << 30]),
    "too many frames": forged(PLAIN, [16, 16], bytes(32)),
    "no frames": forged(PLAIN, []),
    "unknown quantizer": forged(replace(PLAIN, quantizer=StageRecord(99)), [16], bytes(16)),
    "unknown filter": forged(replace(PLAIN, filter=StageRecord(99)), [16], bytes(16)),
    "unknown codec": forged(replace(PLAIN, codec=StageRecord(99)), [16], bytes(16)),
    "quantized integers": forged(
        Descriptor(TensorSpec("int32", (4,)), quantizer=StageRecord(1)), [RAW << 30 | 8], bytes(8)
    ),
    "axis that is not there": forged(replace(PLAIN, quantizer=StageRecord(3, b"\0\1\5\0\0\0")), [4], bytes(4)),
    "parameters that are not raw": forged(
        replace(PLAIN, quantizer=StageRecord(3, b"\1\0\0\0\0\0")), [4, CONSTANT << 30], bytes(16)
    ),
    "planes that are no word": forged(replace(PLAIN, filter=StageRecord(1, b"\1\1")), [8, 8], bytes(24)),
    "exceptions without a quantizer": forged(replace(PLAIN, exceptions=1), [16, 4, 4], bytes(64)),
    "more exceptions than there can be": forged(
        replace(PLAIN, quantizer=StageRecord(3, b"\1\0\0\0\0\0"), exceptions=2), [4, 4, 8, 8], bytes(56)
    ),
    "exceptions as many as elements": forged(
        replace(PLAIN, spec=TensorSpec("float32", (1 << 50,)), quantizer=StageRecord(1), exceptions=1 << 44),
        [16],
        bytes(16),
    ),
    "exceptions that are not raw": forged(
        replace(PLAIN, quantizer=StageRecord(3, b"\1\0\0\0\0\0"), exceptions=1), [4, 4, CONSTANT << 30, 4], bytes(36)
    ),
    "unknown bits among the flags": pack_header(b"\1\x10\1\4\0\0\0\0", [16], [0]) + bytes(16),
    "code of a scale dtype that is not there": forged(
        replace(PLAIN, quantizer=StageRecord(5, b"\1\0\0\0\0\0\2")), [4, 4], bytes(20)
    ),
    "torn records": forged(Descriptor(TensorSpec("float32", (4, 3)), page=True, chunk_elements=4), [16] * 3, bytes(48)),
}


@pytest.mark.parametrize("page", [False, True])
@pytest.mark.parametrize("positions", [(5, 5), (9, 3), (5, 1 << 31), (500, (1 << 32) - 1)], ids=str)
def test_exceptions_out_of_order_or_range_are_refused(positions: tuple[int, int], page: bool) -> None:
    tensor = normal(torch.float32, (8, 96))
    tensor[0, 5], tensor[0, 9] = torch.nan, torch.inf
    payload = bytearray(payload_of(tensor, CompressionConfig("none", "int8"), page=page))
    header = parse_header(memoryview(payload))
    true = np.array([5, 9], np.uint32).tobytes()
    place = payload.index(true, header.end)
    payload[place : place + 8] = np.array(positions, np.uint32).tobytes()
    checksums = [*header.checksums]
    checksums[-2] = xxhash.xxh3_64_intdigest(payload[place : place + 8])
    payload[: header.end] = pack_header(header.descriptor.pack(), header.words, checksums)
    for read in [*READS, PayloadReader.verify]:
        with pytest.raises(FormatError, match="exceptions"):
            read(PayloadReader(payload))


@pytest.mark.parametrize("page", [False, True])
def test_no_flipped_bit_among_exceptions_gives_a_wrong_tensor(page: bool) -> None:
    tensor = normal(torch.float32, (8, 96))
    tensor[0, 5], tensor[6, 9] = torch.nan, torch.inf
    payload = payload_of(tensor, "q4", page=page)
    right = PayloadReader(payload).decode()
    for position in range(8 * (len(payload) - 64), 8 * len(payload)):
        assert_right_or_refused(flipped(payload, position), right, position)


@pytest.mark.parametrize("payload", FORGERIES.values(), ids=FORGERIES)
def test_a_forged_header_is_refused_in_bounded_memory(payload: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(REFUSALS):
            PayloadReader(payload)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_true_checksum_over_a_lying_zstd_frame_is_refused() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))[:60].ljust(60, b"\0")
    descriptor = Descriptor(TensorSpec("uint8", (1000,)), codec=StageRecord(1, b"\3\0"))
    words, sums = np.array([COMPRESSED << 30 | 60], np.uint32), np.array([xxhash.xxh3_64_intdigest(bomb)], np.uint64)
    reader = PayloadReader(pack_header(descriptor.pack(), words, sums) + bomb)
    with pytest.raises(IntegrityError, match="claims"):
        reader.decode()


@pytest.mark.parametrize("size", range(0, 60, 7))
def test_noise_after_a_true_prefix_is_refused(size: int) -> None:
    body = np.random.default_rng(size).bytes(size)
    prefix = b"TDB\1" + struct.pack("<I", 16 + size)
    checksum = xxhash.xxh3_64_intdigest(prefix + body)
    with pytest.raises(REFUSALS):
        PayloadReader((prefix + struct.pack("<Q", checksum) + body).ljust(96, b"\0"))


def test_the_header_of_a_payload_says_what_was_packed() -> None:
    payload = payload_of(normal(torch.float32, (6, 32)), "maximum")
    header = parse_header(memoryview(payload))
    assert header.descriptor.spec == TensorSpec("float32", (6, 32))
    assert pack_header(header.descriptor.pack(), header.words, header.checksums) == payload[: header.end]


@pytest.mark.parametrize(
    "shape", [(1,) * 65, (1 << 61, 0), (1 << 31, 0, 1 << 30)], ids=["rank 65", "2^61", "2^31, 2^30"]
)
def test_a_shape_that_could_not_be_read_back_is_not_written(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match="reshape"):
        encode(torch.empty(shape), COMPRESSION_PRESETS["none"])


@pytest.mark.parametrize("preset", ["none", "lossless", "maximum"])
def test_64_dimensions_are_read_in_every_way(preset: str) -> None:
    tensor = normal(torch.float32, (5, *(1,) * 62, 7))
    reader = PayloadReader(payload_of(tensor, preset))
    whole = reader.decode()
    assert same_bits(reader.decode_index(slice(None, None, -1)), whole.flip(0))
    assert same_bits(reader.decode_index((..., slice(None, None, -2))), whole.flip(-1)[..., ::2])
    assert same_bits(reader.decode_rows([4, -5]), whole[[4, 0]])
