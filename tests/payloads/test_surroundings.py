"""What lies around payloads in a segment file: each damaged byte is named with its place, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tensordb.payloads import Location, SegmentStore, layout

from .processes import DATABASE


def opened(folder: Path) -> SegmentStore:
    return SegmentStore(folder, read_only=False, database_id=DATABASE)


def said(folder: Path, places: list[Location]) -> list[str]:
    store = SegmentStore(folder, read_only=True, database_id=DATABASE)
    offsets, lengths = (np.array([getattr(each, name) for each in places]) for name in ("offset", "length"))
    return store.damage_around(places[0].segment, offsets, lengths)


def stored(folder: Path, *nbytes: int) -> list[Location]:
    store = opened(folder)
    places = [store.append([b"x" * each]) for each in nbytes]
    store.close()
    return places


def test_every_byte_around_payloads_is_held_to_what_was_written(tmp_path: Path) -> None:
    places = stored(tmp_path, 100, 64, 3)
    (path,) = tmp_path.iterdir()
    sound = path.read_bytes()
    payloads = {byte for each in places for byte in range(each.offset, each.offset + each.length)}
    assert said(tmp_path, places) == []
    last = places[-1]
    left = layout.pack_footer(last.segment, DATABASE, last.offset)  # a short payload written over it leaves its end
    for position in range(len(sound)):
        changed = sound[position] ^ 16
        if changed == dict(enumerate(left, last.offset)).get(position):
            changed ^= 48
        path.write_bytes(sound[:position] + bytes([changed]) + sound[position + 1 :])
        found = said(tmp_path, places)
        assert bool(found) == (position not in payloads), position
        assert not found or str(path) in found[0]


def test_dead_bytes_and_the_end_that_a_killed_writer_left_are_no_damage(tmp_path: Path) -> None:
    places = stored(tmp_path, 100, 200, 3)
    (path,) = tmp_path.iterdir()
    sound = path.read_bytes()
    for end in range(places[1].offset, len(sound)):
        path.write_bytes(sound[:end])
        assert said(tmp_path, places[:1]) == []
    path.write_bytes(sound[: places[2].offset] + bytes(range(128)))
    assert said(tmp_path, places[:2]) == []


def test_a_payload_shorter_than_the_footer_that_it_is_written_over_leaves_no_damage(tmp_path: Path) -> None:
    places = stored(tmp_path, 100)
    places += stored(tmp_path, 20)
    store = opened(tmp_path)
    places.append(store.append([b"y" * 10]))
    assert said(tmp_path, places) == [], "while it is open, the rest of the footer lies behind the payload"
    place = store.append_growing(8, 500, lambda write: (write([b"z" * 300]), b"12345678")[1])
    assert place is not None
    store.close()
    assert said(tmp_path, [*places, place]) == []
    (path,) = tmp_path.iterdir()
    end = places[-1].offset + places[-1].length
    assert not any(path.read_bytes()[end : place.offset])


def test_a_file_that_is_gone_is_left_to_its_payloads(tmp_path: Path) -> None:
    places = stored(tmp_path, 100)
    next(tmp_path.iterdir()).unlink()
    assert said(tmp_path, places) == []
