"""Payloads that lie under true checksums are refused, or are read as what they say; never in unbounded memory."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard

from tensordb.encoding import COMPRESSION_PRESETS, PayloadReader
from tensordb.encoding.codecs import CODEC_NAMES, Codec, codec_named
from tensordb.encoding.format import Descriptor, StageRecord, pack_header
from tensordb.encoding.frames import CONSTANT, RAW
from tensordb.errors import FormatError, IntegrityError, MissingDependencyError
from tensordb.model import TensorSpec

from .forging import REFUSALS, Parts, compressed, forged, made_true, parts_of, raw
from .samples import normal, payload_of, same_bits

BYTES = Descriptor(TensorSpec("uint8", (1000,)))
TEXT = (b"the quick brown fox jumps over the lazy dog. " * 30)[:1000]


def under(codec: Codec, *frames: tuple[int, bytes], size: int = 1000) -> bytes:
    """A payload of `size` bytes that says it went through this codec."""
    spec = TensorSpec("uint8", (size,))
    return forged(replace(BYTES, spec=spec, codec=StageRecord(codec.id, codec.pack())), *frames)


def refused(payload: bytes) -> None:
    """Every way to read it ends in a refusal."""
    for read in (PayloadReader.decode, PayloadReader.verify, PayloadReader.content_id):
        with pytest.raises(REFUSALS):
            read(PayloadReader(payload))


@pytest.mark.parametrize("preset", COMPRESSION_PRESETS)
@pytest.mark.parametrize("page", [False, True])
def test_taking_apart_and_putting_together_changes_no_payload(preset: str, page: bool) -> None:
    payload = payload_of(normal(torch.float32, (40, 33)), preset, page=page)
    assert parts_of(payload).payload() == made_true(payload) == payload


@pytest.mark.parametrize("preset", COMPRESSION_PRESETS)
def test_swapped_frames_are_refused_or_are_another_content(preset: str) -> None:
    payload = payload_of(normal(torch.float32, (40, 90)), preset, page=True)
    original, whole = PayloadReader(payload), PayloadReader(payload).decode()
    count = len(parts_of(payload).words)
    for one, two in itertools.combinations(range(count), 2):
        parts = parts_of(payload)
        for column in (parts.words, parts.frames):
            column[one], column[two] = column[two], column[one]  # type: ignore[index]
        try:
            reader = PayloadReader(parts.payload())
            swapped, content = reader.decode(), reader.content_id()
        except REFUSALS:
            continue
        assert same_bits(swapped, whole) or content != original.content_id()
        assert same_bits(reader.decode_rows(range(40)), swapped)


@pytest.mark.parametrize("preset", COMPRESSION_PRESETS)
def test_frames_under_another_payloads_header_are_refused(preset: str) -> None:
    ours, others = (payload_of(normal(torch.float32, (40, 90), seed), preset) for seed in (0, 1))
    end = len(ours) - sum(map(len, parts_of(ours).frames))
    for cut in {end // 16 * 16, end // 2, len(ours) // 2, len(ours) - 16}:
        with pytest.raises(REFUSALS):
            PayloadReader(ours[:cut] + others[cut:]).verify()


def test_lengths_beyond_the_payload_are_refused() -> None:
    four = Descriptor(TensorSpec("uint8", (4000,)), chunk_elements=1000)
    zstd = replace(four, codec=StageRecord(1, b"\3\0"))
    for descriptor, word in ((four, RAW << 30 | (1 << 30) - 1), (four, 1000), (zstd, 1 << 30 | 999)):
        with pytest.raises(REFUSALS):
            PayloadReader(Parts(descriptor.pack(), [word] * 4, [bytes(100), b"", b"", b""]).payload())


VARINTS = {
    "2^63": b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    "2^64": b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x02",
    "2^70": b"\xff" * 9 + b"\x7f",
    "without end": b"\x80" * 30,
    "77 bits": b"\x80" * 10 + b"\x01",
}


@pytest.mark.parametrize("number", VARINTS.values(), ids=VARINTS)
@pytest.mark.parametrize("where", ["shape", "stage", "chunk", "note"])
def test_numbers_without_bounds_are_refused(where: str, number: bytes) -> None:
    body = {
        "shape": b"\x11\0\1" + number + b"\0\0\0\0",
        "stage": b"\x11\0\1\x04\x05" + number + b"\0\0\0",
        "chunk": b"\x11\0\1\x04\0\0\0" + number,
        "note": b"\x11\4\1\x04\0\0\0\0" + number,
    }[where]
    with pytest.raises(FormatError):
        PayloadReader(pack_header(body, [4], [0]) + bytes(4))


def test_a_number_written_longer_than_needed_is_still_that_number() -> None:
    payload = Parts(b"\x11\0\1" + b"\x84\x80\x80\0" + b"\0\0\0\0", [4], [b"abcd"]).payload()
    assert bytes(PayloadReader(payload).decode().tolist()) == b"abcd"


@pytest.mark.parametrize("size", [0, 15, 17, 1 << 31, (1 << 32) - 1])
def test_a_table_that_ends_elsewhere_is_refused(size: int) -> None:
    payload = bytearray(payload_of(normal(torch.float32, (9, 9)), "lossless"))
    payload[4:8] = size.to_bytes(4, "little")
    for each in (bytes(payload), made_true(bytes(payload))):
        with pytest.raises(REFUSALS):
            PayloadReader(each)


def test_65_dimensions_are_refused_and_64_are_read() -> None:
    for rank, chunk in ((64, b"\0"), (65, b"\0")):
        payload = pack_header(bytes((17, 0, rank)) + b"\1" * rank + b"\0\0\0" + chunk, [CONSTANT << 30 | 7], [0])
        if rank == 64:
            assert PayloadReader(payload).decode().flatten().tolist() == [7]
        else:
            with pytest.raises(FormatError, match="rank 65"):
                PayloadReader(payload)


def test_one_element_of_a_constant_exabyte_is_read_in_bounded_memory() -> None:
    frames = 1000
    spec = TensorSpec("uint8", (frames << 26,))
    reader = PayloadReader(forged(Descriptor(spec, chunk_elements=1 << 26), *[(CONSTANT, b"\7")] * frames))
    assert reader.decode_index(-1).item() == 7
    assert reader.decode_index(slice(5, None, 1 << 34)).tolist() == [7] * 4


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, 3e38, -1.0])
def test_forged_scales_give_values_and_no_warning(scale: float) -> None:
    parts = parts_of(payload_of(normal(torch.float32, (6, 33)), "int8_only"))
    parts.frames[-2] = np.full(len(parts.frames[-2]) // 4, scale, np.float32).tobytes()
    reader = PayloadReader(parts.payload())
    assert reader.decode().shape == reader.decode_index(...).shape == (6, 33)


def zstd_frame(flags: int, before: bytes = b"", content: int = 1000) -> bytes:
    """A frame written by hand, which repeats one byte; its content size is in two bytes (less 256)."""
    block = (content << 3 | 1 << 1 | 1).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd" + bytes((flags,)) + before + (content - 256).to_bytes(2, "little") + block + b"x"


def test_a_zstd_frame_may_ask_for_a_window_but_not_for_anything_else() -> None:
    zstd = codec_named("zstd")
    for right in (zstd_frame(0x60), zstd_frame(0x40, b"\x88")):  # one segment; a window of 128 MiB
        assert bytes(PayloadReader(under(zstd, compressed(right))).decode().numpy()) == b"x" * 1000
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0skip"
    plain = zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)
    wrong = [zstd_frame(0x61, b"\7"), zstd_frame(0x68), zstd_frame(0x40, b"\xff"), zstd_frame(0x60, content=1001)]
    wrong += [skippable, skippable + zstd_frame(0x60), zstd_frame(0x60) + skippable, plain, zstd_frame(0x60)[:-1]]
    for frame in wrong:
        refused(under(zstd, compressed(frame)))


def every_codec() -> list[Codec]:
    """Those that compress and are installed."""
    made = []
    for name in CODEC_NAMES[1:]:
        try:
            made.append(codec_named(name))
        except MissingDependencyError:
            continue
    return made


@pytest.mark.parametrize("codec", every_codec(), ids=repr)
def test_a_second_stream_or_anything_else_behind_the_first_is_refused(codec: Codec) -> None:
    whole = codec.compress(TEXT)
    assert bytes(PayloadReader(under(codec, compressed(whole))).decode().numpy()) == TEXT
    halves = codec.compress(TEXT[:500]) + codec.compress(TEXT[500:])
    for frame in (halves, whole + whole, whole + codec.compress(TEXT[:1]), whole + b"x", whole + bytes(64)):
        refused(under(codec, compressed(frame[:999])))


_MEASURE = """
import json, pathlib, re, resource, sys
from tensordb.encoding import PayloadReader
from tensordb.encoding.codecs import codec_named
from tensordb.errors import IntegrityError
def peak():
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # the other count begins with that of the parent
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text()).group(1)) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
grown = {}
for path in sys.argv[1:]:
    name = path.rsplit("/", 1)[1]
    codec_named(name)
    payload = open(path, "rb").read()
    before = peak()
    for read in (PayloadReader.decode, PayloadReader.verify, PayloadReader.content_id):
        try:
            read(PayloadReader(payload))
        except IntegrityError:
            grown[name] = peak() - before
print(json.dumps(grown))
"""


def test_a_bomb_takes_no_more_memory_than_the_tensor_it_claims_to_be(tmp_path: Path) -> None:
    codecs = every_codec()
    for codec in codecs:
        bomb = codec.compress(bytes(24 << 20))
        (tmp_path / codec.name).write_bytes(under(codec, compressed(bomb), size=1 << 20))
    command = [sys.executable, "-c", _MEASURE, *(str(tmp_path / codec.name) for codec in codecs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    grown = json.loads(done.stdout)
    assert set(grown) == {codec.name for codec in codecs}
    assert max(grown.values()) < 16 << 20, grown


def test_raw_frames_say_what_they_say() -> None:
    assert bytes(PayloadReader(forged(BYTES, raw(TEXT))).decode().numpy()) == TEXT
    with pytest.raises(IntegrityError):
        PayloadReader(forged(BYTES, raw(TEXT)) + b"\0")
