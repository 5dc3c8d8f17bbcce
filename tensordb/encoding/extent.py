"""How far a payload reaches, told by its header alone, and whether all of it is there.

For bytes that nothing else says anything about: no stage has to be known, only the version's header and frame table.
"""

from __future__ import annotations

from collections.abc import Iterator

from xxhash import xxh3_64_intdigest

from tensordb.encoding.format import Header, aligned, parse_header
from tensordb.encoding.frames import CONSTANT, parts_of


def stored_nbytes(data: memoryview) -> int:
    """Return the length of the payload that `data` begins with, which may be more than `data` has.

    Raises:
        IntegrityError: if the header is damaged or not all there.
        FormatError: if this is no payload, or one of a version that this release does not know.
    """
    header = parse_header(data)
    return max((end for _, end, _ in _frames(header)), default=header.end)


def is_whole(payload: memoryview) -> bool:
    """Return whether every frame of a payload, whose header is sound, matches its checksum."""
    frames = _frames(parse_header(payload))
    return all(begin == end or xxh3_64_intdigest(payload[begin:end]) == checksum for begin, end, checksum in frames)


def _frames(header: Header) -> Iterator[tuple[int, int, int]]:
    """Yield where each frame begins and ends, and its checksum."""
    at = header.end
    for word, checksum in zip(header.words, header.checksums, strict=True):
        kind, value = parts_of(word)
        end = at if kind == CONSTANT else at + value
        yield at, end, checksum
        at = aligned(end)
