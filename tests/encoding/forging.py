"""Payloads whose checksums are true whatever they say: what an attacker writes, or a writer with a bug."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import xxhash

from tensordb.encoding.format import ENTRY_BYTES, Descriptor, aligned, pack_header, parse_header
from tensordb.encoding.frames import COMPRESSED, CONSTANT, RAW
from tensordb.errors import FormatError, IntegrityError

REFUSALS = (IntegrityError, FormatError)
PREFIX = 16
_LENGTH = (1 << 30) - 1
_LONGEST = 1 << 20


@dataclass
class Parts:
    """A payload taken apart: packed descriptor, table words, and what each frame stores."""

    descriptor: bytes
    words: list[int] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)

    def payload(self) -> bytes:
        """Put the parts together under true checksums; the words may contradict the frames."""
        sums = [_checksum(word, frame) for word, frame in zip(self.words, self.frames, strict=True)]
        whole = pack_header(self.descriptor, self.words, sums)
        for frame in self.frames:
            if frame:
                whole = whole.ljust(aligned(len(whole)), b"\0") + frame
        return whole


def parts_of(payload: bytes) -> Parts:
    """Take a payload apart that has a true header."""
    header = parse_header(memoryview(payload))
    size = int.from_bytes(payload[4:8], "little")
    descriptor = payload[PREFIX : size - ENTRY_BYTES * len(header.words)]
    return Parts(descriptor, list(header.words), [payload[a:b] for a, b in _spans(header.words, header.end)])


def forged(descriptor: Descriptor, *frames: tuple[int, bytes]) -> bytes:
    """A payload with these frames, each a kind and what it stores; of a constant one the byte."""
    words = [kind << 30 | (data[0] if kind == CONSTANT else len(data)) for kind, data in frames]
    return Parts(descriptor.pack(), words, [b"" if kind == CONSTANT else data for kind, data in frames]).payload()


def raw(data: bytes) -> tuple[int, bytes]:
    """A frame stored as it is."""
    return RAW, data


def compressed(data: bytes) -> tuple[int, bytes]:
    """A frame that claims to have gone through the codec."""
    return COMPRESSED, data


def made_true(payload: bytes) -> bytes:
    """Mend all that a reader would stumble over before it believes a payload: checksums, padding and length."""
    if len(payload) < PREFIX or payload[:3] != b"TDB":
        return payload
    mended = bytearray(payload)
    mended[3] = 1
    size = min(max(int.from_bytes(payload[4:8], "little"), PREFIX), len(payload))
    mended[4:8] = size.to_bytes(4, "little")
    mended[size : aligned(size)] = bytes(aligned(size) - size)
    _sign(mended, size)
    try:
        header = parse_header(memoryview(bytes(mended)))
    except REFUSALS:
        return bytes(mended)
    spans = _spans(header.words, header.end)
    end = spans[-1][1] if spans else header.end
    if end <= _LONGEST:
        mended = mended[:end].ljust(end, b"\0")
    table = size - 8 * len(spans)
    for at, (word, (begin, stop)) in enumerate(zip(header.words, spans, strict=True)):
        struct.pack_into("<Q", mended, table + 8 * at, _checksum(word, bytes(mended[begin:stop])))
    _sign(mended, size)
    return bytes(mended)


def _sign(payload: bytearray, size: int) -> None:
    payload[8:16] = xxhash.xxh3_64_intdigest(bytes(payload[:8] + payload[PREFIX:size])).to_bytes(8, "little")


def _checksum(word: int, frame: bytes) -> int:
    return 0 if word >> 30 == CONSTANT else xxhash.xxh3_64_intdigest(frame)


def _spans(words: Sequence[int], first: int) -> list[tuple[int, int]]:
    """Where frames begin and end, as the words claim."""
    spans, end = [], first
    for word in words:
        begin = aligned(end)
        end = begin if word >> 30 == CONSTANT else begin + (word & _LENGTH)
        spans.append((begin, end))
    return spans
