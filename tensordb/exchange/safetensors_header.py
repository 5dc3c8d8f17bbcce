"""The header of a safetensors file: read with every claim checked, and written as safetensors writes it.

A file is 8 bytes with the length of the header, the header as JSON, and the bytes of the tensors without gaps. What a
header says is believed only where the file has the bytes for it, so that no file makes a reader allocate more than
its own size.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tensordb.errors import InvalidInputError
from tensordb.model import TensorSpec
from tensordb.tensors import Bytes, view_of

_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
_TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "I16": "int16",
    "U16": "uint16", "F16": "float16", "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "F32": "float32",
    "C64": "complex64", "F64": "float64", "I64": "int64", "U64": "uint64",
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in _TORCH_NAMES.items()}
_LENGTH_NBYTES = 8
MOST_HEADER_NBYTES = 100_000_000  # what safetensors itself reads
_MOST_DIMENSIONS = 64
METADATA = "__metadata__"


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor that a header names; `begin` and `end` count bytes after the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """The beginning of a file: its bytes as they are, and what they say.

    Attributes:
        raw: All bytes before those of the tensors, the length included.
        entries: The tensors in the order of their bytes.
        metadata: Texts by name.
    """

    raw: bytes
    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]


def dtype_of(name: str) -> str | None:
    """Return what safetensors calls a dtype of torch, given by its name; None where it has none for it."""
    return _DTYPES.get(name)


def parse(raw: bytes, nbytes: int | None, where: str) -> Header:
    """Return what a header says.

    Args:
        raw: The beginning of the file, up to the end of its header.
        nbytes: Bytes of the tensors that follow it; None where they are not there to compare with.
        where: The file, for messages.

    Raises:
        InvalidInputError: It breaks a rule of the format, or the file does not have the bytes it speaks of.
    """
    try:
        fields = json.loads(raw[_LENGTH_NBYTES:].decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(where, f"its header is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise _damaged(where, f"its header is a JSON {type(fields).__name__}, not an object")
    metadata = fields.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(where, "its __metadata__ is not an object of texts")
    # An empty tensor begins where the next one does, whichever of the two is named first.
    entries = [_entry(name, value, where) for name, value in fields.items()]
    entries.sort(key=lambda each: (each.begin, each.end))
    _check_gapless(entries, nbytes, where)
    return Header(raw, tuple(entries), metadata)


def build(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None, *, in_order: bool = False) -> Header:
    """Return a header for tensors, in the order that safetensors gives them: large elements first, then by name.

    With `in_order` they stay in the order given.

    Raises:
        InvalidInputError: safetensors has no dtype for one of them.
    """
    fields: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    named = [(name, _written_dtype(name, spec), spec) for name, spec in specs.items()]
    entries = []
    begin = 0
    for name, dtype, spec in named if in_order else sorted(named, key=lambda each: (-_RANKS[each[1]], each[0])):
        end = begin + _nbytes(dtype, spec.shape)
        entries.append(Entry(name, dtype, spec.shape, begin, end))
        fields[name] = {"dtype": dtype, "shape": list(spec.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % _LENGTH_NBYTES)
    return Header(struct.pack("<Q", len(text)) + text, tuple(entries), dict(metadata or {}))


class SafetensorsFile:
    """A file whose tensors are read where they lie in a memory map, once somebody needs their bytes."""

    def __init__(self, path: Path) -> None:
        where = str(path)
        data = map_bytes(path)
        if data.nbytes < _LENGTH_NBYTES:
            raise _damaged(where, f"it has {data.nbytes} bytes, fewer than the length of a header takes")
        (length,) = struct.unpack("<Q", data[:_LENGTH_NBYTES].tobytes())
        if length > min(MOST_HEADER_NBYTES, data.nbytes - _LENGTH_NBYTES):
            raise _damaged(where, f"its first 8 bytes speak of a header of {length:,} bytes, in {data.nbytes:,}")
        start = _LENGTH_NBYTES + length
        self.header = parse(data[:start].tobytes(), data.nbytes - start, where)
        self._data = data[start:]

    def tensor(self, entry: Entry) -> torch.Tensor:
        """Return a tensor over the file's own bytes; flat uint8 where torch has no exact dtype for them."""
        data = self._data[entry.begin : entry.end]
        return view_of(data, stored_spec(entry, data))


def stored_spec(entry: Entry, data: Bytes) -> TensorSpec:
    """Return what the bytes of an entry are stored as: flat uint8 where a tensor would not keep every bit."""
    # A bool of another byte than 0 and 1 is none to torch, and elements of 4 and 6 bits have no place of their own.
    exact = entry.dtype in _TORCH_NAMES and not (entry.dtype == "BOOL" and data.nbytes and int(data.max()) > 1)
    return TensorSpec(_TORCH_NAMES[entry.dtype], entry.shape) if exact else TensorSpec("uint8", (data.nbytes,))


def map_bytes(path: Path) -> Bytes:
    """Return the bytes of a regular file, mapped and not read.

    Raises:
        InvalidInputError: It cannot be read, or is no regular file.
    """
    try:
        # A pipe would make open() wait for somebody to write.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError("it is no regular file")
            nbytes = os.fstat(file.fileno()).st_size
            if not nbytes:
                return np.empty(0, np.uint8)
            return np.frombuffer(mmap.mmap(file.fileno(), nbytes, access=mmap.ACCESS_READ), np.uint8)
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}; give a regular file") from error


_RANKS = {dtype: rank for rank, dtype in enumerate(_BITS)}


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name is in it twice")
    "".join(fields).encode("utf-8")  # half of a surrogate pair is no text
    return fields


def _entry(name: str, value: Any, where: str) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(where, f"its header describes {name!r} as {str(value)[:200]}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _damaged(where, f"{name!r} has the dtype {str(dtype)[:50]!r}; those known are {', '.join(_BITS)}")
    if not _are_sizes(shape) or len(shape) > _MOST_DIMENSIONS:
        raise _damaged(where, f"{name!r} has the shape {str(shape)[:200]}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != _nbytes(dtype, shape):
        raise _damaged(where, f"{name!r} of {dtype} {str(shape)[:200]} is said to lie at {str(offsets)[:200]}")
    return Entry(name, dtype, tuple(shape), *offsets)


def _check_gapless(entries: Sequence[Entry], nbytes: int | None, where: str) -> None:
    at = 0
    for entry in entries:
        if entry.begin != at:
            raise _damaged(
                where, f"{entry.name!r} begins at {entry.begin:,} and not at {at:,}, where the one before ends"
            )
        at = entry.end
    if nbytes is not None and at != nbytes:
        raise _damaged(where, f"its tensors have {at:,} bytes and it has {nbytes:,} for them; it may be cut off")


def _nbytes(dtype: str, shape: Sequence[int]) -> int:
    bits = _BITS[dtype]
    for size in shape:
        bits *= size
    return bits // 8 if bits % 8 == 0 else -1


def _written_dtype(name: str, spec: TensorSpec) -> str:
    dtype = dtype_of(spec.dtype)
    if dtype is None:
        raise InvalidInputError(
            f"{name!r} is {spec.dtype}, which safetensors cannot hold; convert it to one of: {', '.join(_DTYPES)}"
        )
    return dtype


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 1 << 62 for each in value)


def _damaged(where: str, what: str) -> InvalidInputError:
    return InvalidInputError(f"{where} is not a whole safetensors file: {what}")
