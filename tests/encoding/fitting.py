"""Frames that fit a header: as many, and as long, as the reader will want once it believes the descriptor."""

from __future__ import annotations

import random
import re

from tensordb.encoding import PayloadReader, chunks
from tensordb.encoding.codecs import codec_with_id
from tensordb.encoding.format import parse_header
from tensordb.encoding.frames import COMPRESSED, CONSTANT, RAW
from tensordb.errors import FormatError, IntegrityError

from .forging import Parts

_MOST_FRAMES, _LONGEST = 64, 1024
_OF_TABLE = re.compile(r"where the tensor has (\d+) frames")


def fit(parts: Parts, chance: random.Random) -> None:
    """Give the frames the number and lengths that the descriptor implies, if a reader gets so far as to ask."""
    count = _frames_wanted(parts)
    if count is not None and count <= _MOST_FRAMES:
        missing = count - len(parts.words)
        parts.words[count:] = [RAW << 30] * missing
        parts.frames[count:] = [b""] * missing
    sizes = _sizes_wanted(parts)
    for at, size in enumerate(sizes):
        _fit_one(parts, at, size, chance)


def _fit_one(parts: Parts, at: int, size: int, chance: random.Random) -> None:
    kind, frame = parts.words[at] >> 30, parts.frames[at]
    if kind == COMPRESSED and 0 < len(frame) < size and chance.random() < 0.7:
        return
    if size > _LONGEST:
        kind, frame, value = CONSTANT, b"", chance.choice((0, 255))
    elif kind == CONSTANT:
        value = parts.words[at] & 255
    else:
        content = (frame or b"\0") * (size // max(1, len(frame)) + 1)
        kind, frame = RAW, content[:size]
        packed = _compressed(parts, frame) if chance.random() < 0.5 else b""
        if 0 < len(packed) < size:
            kind, frame = COMPRESSED, packed
        value = len(frame)
    parts.words[at], parts.frames[at] = kind << 30 | value, frame


def _compressed(parts: Parts, data: bytes) -> bytes:
    stage = parse_header(memoryview(Parts(parts.descriptor).payload())).descriptor.codec
    return bytes(codec_with_id(stage.id, stage.parameters).compress(data))


def _frames_wanted(parts: Parts) -> int | None:
    """The number of frames that the reader expects; None if it has what it expects, or refuses for another reason."""
    try:
        PayloadReader(parts.payload())
    except FormatError as error:
        wanted = _OF_TABLE.search(str(error))
        return int(wanted.group(1)) if wanted else None
    except IntegrityError:
        pass
    return None


def _sizes_wanted(parts: Parts) -> list[int]:
    """The decoded length of each frame that the reader expects; none if it refuses before that matters."""
    sizes: list[int] = []
    table = chunks.FrameTable

    def listening(payload: memoryview, header: object, wanted: list[int], *rest: int) -> object:
        sizes.extend(wanted)
        return table(payload, header, wanted, *rest)  # type: ignore[arg-type]

    chunks.FrameTable = listening  # type: ignore[assignment, misc]
    try:
        PayloadReader(parts.payload())
    except (FormatError, IntegrityError):
        pass
    finally:
        chunks.FrameTable = table  # type: ignore[misc]
    return sizes if len(sizes) == len(parts.words) else []
