"""Rows of the catalog, made anew from payloads and the files that they are in: these say all but who names them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tensordb.catalog.objects import NewObject
from tensordb.catalog.remaking import Sample
from tensordb.encoding import PayloadReader
from tensordb.engine.chaining import UNREADABLE, readers_of
from tensordb.engine.scanning import Place, payloads_in
from tensordb.engine.writer import new_object
from tensordb.errors import IntegrityError
from tensordb.model import TensorSpec
from tensordb.payloads import Location
from tensordb.payloads.layout import HEADER_BYTES, database_of
from tensordb.payloads.writer import segment_of, segment_path


def objects_in(folder: Path) -> Iterator[tuple[NewObject, bytes | None]]:
    """Yield a row for each payload in a folder of segments that can be read, with no references counted.

    Beside it the content id of the tensor that it is stored as a difference from, None for one stored by itself.

    Raises:
        OSError: A file cannot be read.
    """
    segments = _segments(folder)
    places = [found for file in segments for found in payloads_in(file) if isinstance(found, Place)]
    for place, reader in readers_of(places):
        try:
            if isinstance(reader, Exception):
                raise reader
            content = reader.content_id()
        except UNREADABLE:  # `verify` tells what names it
            continue
        location = Location(segments[place.file], place.begin, place.end - place.begin)
        yield new_object(reader.object_id(content), content, reader.encoding, location, 0), reader.base_id


def database_id_in(folder: Path) -> bytes:
    """Return the id of the database that most segments of a folder say they belong to; a new one where none does.

    Raises:
        OSError: A file cannot be read.
    """
    found = Counter[bytes]()
    for file in _segments(folder):
        with file.open("rb") as content:
            try:
                found[database_of(content.read(HEADER_BYTES), str(file))] += 1
            except IntegrityError:
                continue
    return found.most_common(1)[0][0] if found else os.urandom(16)


def spec_in(folder: Path, sample: Sample) -> TensorSpec | None:
    """Return the spec of the tensor that a payload of a folder of segments holds, None where it cannot be read."""
    try:
        reader = PayloadReader(sample.payload if sample.segment is None else _place(folder, sample).map())
    except (*UNREADABLE, OSError, ValueError):  # there is no such file, or it is shorter
        return None
    spec = reader.spec
    return TensorSpec(spec.dtype, spec.shape[1:]) if sample.is_row else spec


def _place(folder: Path, sample: Sample) -> Place:
    begin = sample.position or 0
    return Place(segment_path(folder, sample.segment or 0), begin, begin + (sample.nbytes or 0))


def _segments(folder: Path) -> dict[Path, int]:
    return {file: segment for file in sorted(folder.iterdir()) if (segment := segment_of(file.name)) is not None}
