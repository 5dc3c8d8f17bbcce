"""The user's metadata as he gave it: checked, turned into plain values, and packed so that it comes back the same.

The packed document is the truth for what a read returns; the typed SQL struct beside it (`fields`) serves queries
alone. A struct cannot tell a missing field from None, nor 1 from 1.0 once widened, so it never answers a read.
Format: MessagePack, with extension types for what it lacks.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import torch

from tensordb.catalog.json_text import json_of
from tensordb.errors import IntegrityError, InvalidInputError

MAX_DEPTH = 64
_BIG_INT, _DATETIME, _DATE = 1, 2, 3
_ATOMS = frozenset({int, float, bool, type(None)})
PLAIN = _ATOMS | {str}
_TEXT = frozenset({str})
_LEAVES = PLAIN | {dt.datetime, dt.date}


def normalize(metadata: Mapping[str, Any] | None, *, where: str = "metadata") -> dict[str, Any] | None:
    """Return a deep copy of `metadata` in plain Python values.

    Args:
        metadata: A mapping with text keys, or None. Values: None, bool, int, float, str, datetime, date, lists and
            tuples (which come back as lists), mappings, NumPy and torch scalars (which come back as Python's).
        where: Name of the argument in error messages.

    Raises:
        InvalidInputError: A key or value cannot be stored; the message has the path to it.
    """
    if metadata is None:
        return None
    if not isinstance(metadata, Mapping):
        raise InvalidInputError(f"{where} must be a mapping of names to values, not {type(metadata).__name__}")
    return _plain_mapping(metadata, where, 0)


def pack(document: dict[str, Any] | None) -> bytes | None:
    """Return the stored form of a normalized document."""
    if document is None:
        return None
    return msgpack.packb(document, default=_extend)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class FlatRows:
    """Documents of plain values, column by column: a third of the memory that dicts take.

    Attributes:
        columns: For each name the values in order, None where a document has None or lacks the name.
        empty: For each document whether it has no names at all.
    """

    columns: Mapping[str, list[Any]]
    empty: list[bool]

    def rows(self) -> list[dict[str, Any] | None]:
        """Return the documents, with None for what they lack."""
        names = list(self.columns)
        rows = zip(*self.columns.values(), strict=True) if names else [()] * len(self.empty)
        return [
            {} if empty else dict(zip(names, row, strict=True)) for row, empty in zip(rows, self.empty, strict=True)
        ]


Documents = FlatRows | list[dict[str, Any] | None]


def pack_flat(rows: Sequence[dict[str, Any]]) -> list[bytes] | None:
    """Return the stored forms of flat documents whose values have `PLAIN` types, None if one cannot be packed so."""
    try:
        return list(map(msgpack.Packer().pack, rows))
    except (OverflowError, UnicodeEncodeError):
        return None


def unpack(packed: bytes | None) -> dict[str, Any]:
    """Return the document of its stored form; no document is an empty one.

    Raises:
        IntegrityError: The bytes are not a document.
    """
    if packed is None:
        return {}
    try:
        document = msgpack.unpackb(packed, ext_hook=_restore)
    except (ValueError, TypeError, msgpack.UnpackException) as error:  # TypeError: a list for a key
        raise IntegrityError(f"stored metadata of {len(packed)} bytes cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise IntegrityError(f"stored metadata of {len(packed)} bytes is a {type(document).__name__}, not a document")
    _check_plain(document, MAX_DEPTH)
    return document


def as_json(document: Mapping[str, Any]) -> str:
    """Return a normalized document as JSON, for SQL to look into; what JSON lacks becomes text."""
    return json_of(_without_nan(document))


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    return [_without_nan(each) for each in value] if isinstance(value, list) else value


def _plain_mapping(mapping: Mapping[Any, Any], path: str, depth: int) -> dict[str, Any]:
    plain = {}
    for key, value in mapping.items():
        if type(key) is not str:
            raise InvalidInputError(f"{path} has the key {key!r} of type {type(key).__name__}; keys must be text")
        if not key.isascii():
            check_text(key, f"{path} key")
        plain[key] = value if type(value) in _ATOMS else _plain(value, path, key, depth)
    return plain


def _plain(value: Any, path: str, key: str | int, depth: int) -> Any:
    kind = type(value)
    if kind is str:
        return check_text(value, _join(path, key))
    if kind in PLAIN or kind in (dt.datetime, dt.date):
        return value
    if depth >= MAX_DEPTH:
        raise InvalidInputError(f"{path} is nested deeper than {MAX_DEPTH} levels; flatten it")
    if isinstance(value, Mapping):
        return _plain_mapping(value, _join(path, key), depth + 1)
    if isinstance(value, list | tuple):
        inner = _join(path, key)
        return [_plain(item, inner, i, depth + 1) for i, item in enumerate(value)]
    return _scalar(value, _join(path, key))


def _scalar(value: Any, path: str) -> Any:
    """Turn the scalars of NumPy, torch and subclasses of Python's into plain ones."""
    if isinstance(value, np.datetime64):
        converted = value.astype("datetime64[us]").item()
        if converted is not None:
            return converted
    elif isinstance(value, np.generic) and isinstance(value.item(), bool | int | float | str):
        return _plain(value.item(), path, "", 0)
    elif isinstance(value, torch.Tensor) and value.ndim == 0 and not value.is_complex() and value.device.type != "meta":
        return value.item()
    elif isinstance(value, np.ndarray) and value.ndim == 0:
        return _scalar(value[()], path)
    elif isinstance(value, dt.datetime):  # subclasses, such as pandas' Timestamp
        return dt.datetime.fromisoformat(value.isoformat()) if value == value else None
    elif isinstance(value, int):  # by the base's own method: a subclass, such as an enum, may present itself otherwise
        return int.__int__(value)
    elif isinstance(value, float):
        return float.__float__(value)
    elif isinstance(value, str):
        return check_text(str.__str__(value), path)
    raise InvalidInputError(
        f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which metadata cannot hold; give None, "
        f"a bool, number, text, datetime, list or mapping (an array: .tolist(), or store it as a tensor of its own)"
    )


def check_text(text: str, path: str) -> str:
    """Return a text; raise InvalidInputError when it has lone surrogates, which no encoding can store."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{path} {text!r} is not valid Unicode text: {error}") from None
    return text


def _join(path: str, key: str | int) -> str:
    if key == "":
        return path
    return f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}"


def _check_plain(document: dict[Any, Any], levels: int) -> None:
    """Raise IntegrityError unless this has what `normalize` gives, so that nobody who uses it meets anything else."""
    if not _TEXT.issuperset(map(type, document)):
        raise IntegrityError("stored metadata has a key that is not text")
    if not _LEAVES.issuperset(map(type, document.values())):
        _check_values(document.values(), levels)


def _check_values(values: Iterable[Any], levels: int) -> None:
    for value in values:
        if type(value) in _LEAVES:
            continue
        if not levels or type(value) not in (dict, list):
            raise IntegrityError(f"stored metadata holds a {type(value).__name__} that none is written with")
        _check_plain(value, levels - 1) if type(value) is dict else _check_values(value, levels - 1)


def _extend(value: Any) -> msgpack.ExtType:
    if isinstance(value, int):
        return msgpack.ExtType(_BIG_INT, hex(value).encode())  # of any length; decimal digits are limited
    if isinstance(value, dt.datetime):
        return msgpack.ExtType(_DATETIME, value.isoformat().encode())
    return msgpack.ExtType(_DATE, value.isoformat().encode())


def _restore(code: int, data: bytes) -> Any:
    text = data.decode()
    if code == _BIG_INT:
        return int(text, 16)
    if code == _DATETIME:
        return dt.datetime.fromisoformat(text)
    if code == _DATE:
        return dt.date.fromisoformat(text)
    raise ValueError(f"unknown metadata extension {code}")
