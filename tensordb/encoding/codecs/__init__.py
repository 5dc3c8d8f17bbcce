"""Codecs: bytes to fewer bytes and back, one file each, found by name or by the id that a payload stores.

A new codec is a file and a line in the table below. Its module is imported when it is first used.

>>> codec = codec_named("zstd", level=9)
>>> codec.decompress(codec.compress(bytes(100)), 100) == bytes(100)
True
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any

from tensordb.encoding.codecs.base import Codec
from tensordb.errors import FormatError, InvalidInputError, UnknownPresetError, UnsupportedFormatError

__all__ = ["CODEC_NAMES", "Codec", "codec_named", "codec_with_id"]

# name -> (id, class); the module has the codec's name.
_CODECS = {
    "none": (0, "NoCodec"),
    "zstd": (1, "Zstd"),
    "lz4": (2, "Lz4"),
    "gzip": (3, "Gzip"),
    "zlib": (4, "Zlib"),
    "lzma": (5, "Lzma"),
    "pcodec": (6, "Pcodec"),
}
CODEC_NAMES = tuple(_CODECS)


def _codec_class(name: str) -> type[Codec]:
    found: type[Codec] = getattr(import_module(f"tensordb.encoding.codecs.{name}"), _CODECS[name][1])
    return found


def codec_named(name: str, /, **parameters: Any) -> Codec:
    """Return the codec called `name` with its parameters, such as ``level``.

    Raises:
        UnknownPresetError: if there is no such codec.
        InvalidInputError: if it has no such parameter or the value is out of range.
    """
    if name not in _CODECS:
        raise UnknownPresetError(f"unknown codec {name!r}; use one of: {', '.join(CODEC_NAMES)}")
    codec = _codec_class(name)
    known: list[str] = [each.name for each in fields(codec)] if is_dataclass(codec) else []
    if unknown := [key for key in parameters if key not in known]:
        raise InvalidInputError(f"codec {name} has no parameter {unknown[0]!r}; it has: {', '.join(known) or 'none'}")
    return codec(**parameters)


def codec_with_id(number: int, packed: bytes) -> Codec:
    """Return the codec that a payload names.

    Raises:
        FormatError: if this release does not know it or its parameters.
    """
    for name, (known, _) in _CODECS.items():
        if known == number:
            try:
                return _codec_class(name).unpack(packed)
            except InvalidInputError as error:
                raise FormatError(f"payload has impossible codec parameters: {error}") from error
    raise UnsupportedFormatError(f"payload uses codec {number}, unknown to this release; read it with a newer release")
