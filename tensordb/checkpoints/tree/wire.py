"""Documents on the wire: a version byte, then a flat stream of MessagePack scalars.

Invariants: a document never nests for MessagePack, since containers are extension tokens that say how many values
follow, so a reader of forged bytes decides about depth and memory itself; what a document takes in memory is linear
in its bytes, which are bounded.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgpack

from tensordb.errors import IntegrityError, InvalidInputError, UnsupportedFormatError

VERSION = 1
_NOTED = 2
MAX_NBYTES = 64 << 20
ATOMS: frozenset[type] = frozenset({type(None), bool, int, float, str, bytes})
"""Types whose values are one token, and come back as what they were."""

Mark = msgpack.ExtType
_BIG_INT = 0
_NUMBER_NBYTES = 8
_ERRORS = "surrogatepass"  # lone surrogates are text in Python, and have to come back


@lru_cache(maxsize=4096)
def mark(code: int, number: int = 0) -> Any:
    """Return the token of a container of `number` values, or of another numbered thing."""
    return Mark(code, number.to_bytes((number.bit_length() + 7) // 8, "little"))


def number_of(token: Any) -> int:
    """Return the number that a mark carries; raise IntegrityError for one that counts nothing."""
    if len(token.data) > _NUMBER_NBYTES:
        raise IntegrityError(f"a document has a number of {len(token.data)} bytes in place of a count")
    return int.from_bytes(token.data, "little")


def pack(tokens: list[Any]) -> bytes:
    """Return the document of these tokens: atoms and marks.

    Raises:
        InvalidInputError: if it is larger than `MAX_NBYTES`.
    """
    packer = msgpack.Packer(default=_extend, unicode_errors=_ERRORS, autoreset=False)
    try:
        for token in tokens:
            packer.pack(token)
    except (ValueError, MemoryError) as error:
        raise _too_large("more than 4 GiB in one value") from error
    packed: bytes = bytes((VERSION,)) + packer.bytes()
    if len(packed) > MAX_NBYTES:
        raise _too_large(f"{len(packed)} bytes")
    return packed


def check_size(tokens: list[Any]) -> None:
    """Raise InvalidInputError when these tokens cannot fit a document, each being one byte at least."""
    if len(tokens) > MAX_NBYTES:
        raise _too_large(f"more than {MAX_NBYTES} values")


def with_note(document: bytes, note: bytes) -> bytes:
    """Return a document that a note is attached to: bytes that whoever wrote it reads beside it."""
    return bytes((_NOTED,)) + len(document).to_bytes(8, "little") + document + note


def split(document: bytes) -> tuple[bytes, bytes | None]:
    """Return a document without its note, and the note if it has one."""
    if document[:1] != bytes((_NOTED,)):
        return document, None
    end = 9 + int.from_bytes(document[1:9], "little")
    if end > len(document):
        raise IntegrityError(f"a document of {len(document)} bytes ends before its note")
    return document[9:end], document[end:]


def unpack(document: bytes) -> list[Any]:
    """Return the tokens of a document: atoms and marks, nothing else.

    Raises:
        FormatError: The version is not known.
        IntegrityError: The bytes are not a document.
    """
    document, _ = split(document)
    if document[:1] != bytes((VERSION,)):
        found = document[0] if document else "none"
        raise UnsupportedFormatError(
            f"a document of version {found} cannot be read; this release reads version {VERSION}"
        )
    if len(document) > MAX_NBYTES:
        raise IntegrityError(f"a document of {len(document)} bytes is longer than any that was written ({MAX_NBYTES})")
    tokens = _tokens(memoryview(document)[1:])
    if not ATOMS.union((Mark,)).issuperset(map(type, tokens)):
        raise IntegrityError(f"a document of {len(document)} bytes holds a value that none is written with")
    return tokens


def _tokens(stream: memoryview) -> list[Any]:
    unpacker = msgpack.Unpacker(
        max_buffer_size=max(1, len(stream)),
        max_array_len=0,
        max_map_len=0,
        ext_hook=_restore,
        unicode_errors=_ERRORS,
    )
    unpacker.feed(stream)
    try:
        tokens = list(unpacker)
    except (ValueError, msgpack.UnpackException) as error:
        raise IntegrityError(f"a document of {len(stream) + 1} bytes cannot be read: {error}") from error
    if unpacker.tell() != len(stream):
        raise IntegrityError(f"a document of {len(stream) + 1} bytes ends within a value")
    return tokens


def _too_large(size: str) -> InvalidInputError:
    return InvalidInputError(
        f"what the state holds beside its tensors takes {size}, the limit is {MAX_NBYTES} bytes; "
        "hold long lists and byte strings as tensors or NumPy arrays"
    )


def _extend(value: int) -> Any:
    return Mark(_BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))


def _restore(code: int, data: bytes) -> Any:
    return int.from_bytes(data, "little", signed=True) if code == _BIG_INT else Mark(code, data)
