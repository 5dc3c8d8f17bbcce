"""The rows of objects, made anew from their payloads: a payload says all that its row does, but for who names it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tensordb.catalog.objects import NewObject
from tensordb.engine.chaining import UNREADABLE, readers_of
from tensordb.engine.scanning import Place, payloads_in
from tensordb.engine.writer import new_object
from tensordb.payloads import Location
from tensordb.payloads.writer import segment_of


def objects_in(folder: Path) -> Iterator[NewObject]:
    """Yield a row for each payload in a folder of segments that can be read, with no references counted.

    Raises:
        OSError: A file cannot be read.
    """
    segments = {file: segment for file in sorted(folder.iterdir()) if (segment := segment_of(file.name)) is not None}
    places = [found for file in segments for found in payloads_in(file) if isinstance(found, Place)]
    for place, reader in readers_of(places):
        try:
            if isinstance(reader, Exception):
                raise reader
            content = reader.content_id()
        except UNREADABLE:  # `verify` tells what names it
            continue
        location = Location(segments[place.file], place.begin, place.end - place.begin)
        yield new_object(reader.object_id(content), content, reader.encoding, location, 0)
