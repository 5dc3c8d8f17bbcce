"""The payload's header: its bytes, and the checks that come before anything is believed. FORMAT.md describes it.

Stages are ids with parameter bytes here; what they mean is the business of their own rooms. Nothing is allocated for a
header beyond what its own bytes hold.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from tensordb.errors import FormatError, IntegrityError, UnsupportedFormatError
from tensordb.model import MeasuredError, TensorSpec

MAGIC = b"TDB"
VERSION = 1
ALIGNMENT = 16
ENTRY_BYTES = 12
MAX_RANK = 64
MAX_ELEMENTS = 1 << 60
_PREFIX = struct.Struct("<3sBIQ")
_ERROR = struct.Struct("<dd")
_NO_ERROR = MeasuredError()
_PAGE, _HAS_ERROR, _HAS_NOTE, _HAS_EXCEPTIONS = 1, 2, 4, 8

# Stored numbers of dtypes: append only.
_DTYPES = {
    "float32": 1,
    "float64": 2,
    "float16": 3,
    "bfloat16": 4,
    "float8_e4m3fn": 5,
    "float8_e4m3fnuz": 6,
    "float8_e5m2": 7,
    "float8_e5m2fnuz": 8,
    "float8_e8m0fnu": 9,
    "complex32": 10,
    "complex64": 11,
    "complex128": 12,
    "int8": 13,
    "int16": 14,
    "int32": 15,
    "int64": 16,
    "uint8": 17,
    "uint16": 18,
    "uint32": 19,
    "uint64": 20,
    "bool": 21,
}
_DTYPE_NAMES = {number: name for name, number in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class StageRecord:
    """A stage as stored: its id and its packed parameters. Id 0 is the stage that does nothing."""

    id: int = 0
    parameters: bytes = b""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a header says but for the frame table.

    Attributes:
        spec: The tensor as its user knows it.
        page: Whether dimension 0 counts records, each of which was quantized by itself.
        chunk_elements: Elements of a chunk; 0 when one chunk holds all.
        exceptions: Elements that are stored exactly beside the codes.
    """

    spec: TensorSpec
    page: bool = False
    quantizer: StageRecord = StageRecord()
    filter: StageRecord = StageRecord()
    codec: StageRecord = StageRecord()
    chunk_elements: int = 0
    error: MeasuredError = _NO_ERROR
    note: str | None = None
    exceptions: int = 0

    def pack(self) -> bytes:
        """Return the descriptor as a header stores it."""
        lossless = self.error == _NO_ERROR
        flags = self.page * _PAGE | (not lossless) * _HAS_ERROR | (self.note is not None) * _HAS_NOTE
        flags |= bool(self.exceptions) * _HAS_EXCEPTIONS
        parts = [bytes((_DTYPES[self.spec.dtype], flags, len(self.spec.shape)))]
        parts += [_varint(size) for size in self.spec.shape]
        for stage in (self.quantizer, self.filter, self.codec):
            parts.append(bytes((stage.id,)))
            if stage.id:
                parts += [_varint(len(stage.parameters)), stage.parameters]
        parts.append(_varint(self.chunk_elements))
        if not lossless:
            parts.append(_ERROR.pack(self.error.relative_l2, self.error.max_abs))
        if self.note is not None:
            text = self.note.encode()
            parts += [_varint(len(text)), text]
        if self.exceptions:
            parts.append(_varint(self.exceptions))
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Header:
    """A verified header: the descriptor and the two columns of the frame table.

    Attributes:
        words: For each frame 32 bits: kind in the two high ones, length or value in the others.
        checksums: For each frame the XXH3-64 of its stored bytes.
        end: Offset of the first frame.
    """

    descriptor: Descriptor
    words: Sequence[int]
    checksums: Sequence[int]
    end: int


def aligned(offset: int) -> int:
    """Return the next offset at which a frame may begin."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def is_storable(shape: tuple[int, ...]) -> bool:
    """Return whether a header may claim this shape, which its dimensions of size 0 do not make smaller."""
    # torch multiplies the other sizes of an empty tensor all the same, for its strides.
    return len(shape) <= MAX_RANK and math.prod(max(size, 1) for size in shape) <= MAX_ELEMENTS


def header_bytes(descriptor: bytes, frames: int) -> int:
    """Return the length of the header that `pack_header` gives for so many frames."""
    return aligned(_PREFIX.size + len(descriptor) + ENTRY_BYTES * frames)


def pack_header(descriptor: bytes, words: Sequence[int], checksums: Sequence[int]) -> bytes:
    """Return the header with its checksum and padding, ready to be followed by the first frame."""
    body = descriptor + struct.pack(f"<{len(words)}I{len(checksums)}Q", *words, *checksums)
    size = _PREFIX.size + len(body)
    checksum = _header_checksum(MAGIC + struct.pack("<BI", VERSION, size), body)
    return (_PREFIX.pack(MAGIC, VERSION, size, checksum) + body).ljust(aligned(size), b"\0")


def parse_header(payload: memoryview) -> Header:
    """Return the header of `payload` once its checksum holds.

    Raises:
        IntegrityError: if the payload is cut short or its header is not what was written.
        FormatError: if it is no payload, or of a version that this release does not know.
    """
    if len(payload) < _PREFIX.size:
        raise IntegrityError(f"payload has {len(payload)} bytes, a header needs {_PREFIX.size}; it was cut short")
    magic, version, size, checksum = _PREFIX.unpack_from(payload)
    if magic != MAGIC:
        raise FormatError(f"payload begins with {magic!r}, not {MAGIC!r}; these bytes are not a tensordb payload")
    end = aligned(size)
    if not _PREFIX.size <= size <= end <= len(payload):
        raise IntegrityError(f"payload has {len(payload)} bytes, its header claims {size}; it is damaged or cut short")
    if _header_checksum(payload[:8], payload[16:size]) != checksum or any(payload[size:end]):
        raise IntegrityError("payload header does not match its checksum; restore the payload from a copy")
    if version != VERSION:
        raise UnsupportedFormatError(
            f"payload has format {version}, this release reads {VERSION}; read it with a newer release"
        )
    cursor = _Cursor(bytes(payload[16:size]))
    descriptor = _parse_descriptor(cursor)
    table = cursor.rest()
    if len(table) % ENTRY_BYTES:
        raise FormatError(f"frame table of {len(table)} bytes is not a whole number of entries; use a newer release")
    frames = len(table) // ENTRY_BYTES
    words = struct.unpack_from(f"<{frames}I", table)
    return Header(descriptor, words, struct.unpack_from(f"<{frames}Q", table, 4 * frames), end)


def _header_checksum(prefix: Any, body: Any) -> int:
    state = xxhash.xxh3_64(prefix)
    state.update(body)
    return state.intdigest()


def _parse_descriptor(cursor: _Cursor) -> Descriptor:
    dtype, flags, rank = cursor.take(3)
    if dtype not in _DTYPE_NAMES or flags > (_PAGE | _HAS_ERROR | _HAS_NOTE | _HAS_EXCEPTIONS) or rank > MAX_RANK:
        raise UnsupportedFormatError(
            f"header has dtype {dtype}, flags {flags}, rank {rank}; read it with a newer release"
        )
    shape = tuple(cursor.varint() for _ in range(rank))
    if not is_storable(shape):
        raise FormatError(f"header claims the shape {shape}, more than {MAX_ELEMENTS} elements; it is forged")
    quantizer, filter_, codec = cursor.stage(), cursor.stage(), cursor.stage()
    chunk_elements = cursor.varint()
    error = cursor.error() if flags & _HAS_ERROR else MeasuredError()
    note = cursor.text() if flags & _HAS_NOTE else None
    exceptions = cursor.varint() if flags & _HAS_EXCEPTIONS else 0
    if flags & _HAS_EXCEPTIONS and not (exceptions and quantizer.id):
        raise FormatError("header promises exceptions where there can be none; it is forged")
    spec = TensorSpec(_DTYPE_NAMES[dtype], shape)
    return Descriptor(spec, bool(flags & _PAGE), quantizer, filter_, codec, chunk_elements, error, note, exceptions)


def _varint(number: int) -> bytes:
    """Return LEB128: seven bits a byte, lowest first, the high bit set on all but the last."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


class _Cursor:
    """Reads a header body front to back; anything missing is a FormatError."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        part = self._data[self._at : self._at + size]
        if len(part) != size:
            raise FormatError("header ends within a field; the payload is forged or of a newer release")
        self._at += size
        return part

    def varint(self) -> int:
        """Return the next LEB128 number."""
        number = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
        raise FormatError("header has a number of more than 70 bits; the payload is forged or of a newer release")

    def stage(self) -> StageRecord:
        number = self.take(1)[0]
        return StageRecord(number, self.take(self.varint())) if number else StageRecord()

    def error(self) -> MeasuredError:
        """Return the measured error: norms, which are neither negative nor NaN."""
        relative, largest = _ERROR.unpack(self.take(_ERROR.size))
        if not (relative >= 0 and largest >= 0):
            raise FormatError(f"header claims the errors {relative} and {largest}; the payload is forged")
        return MeasuredError(relative, largest)

    def text(self) -> str:
        """Return the next text, which its length precedes."""
        try:
            return self.take(self.varint()).decode()
        except UnicodeDecodeError as error:
            raise FormatError("header has a note that is not UTF-8; the payload is forged") from error

    def rest(self) -> bytes:
        return self._data[self._at :]
