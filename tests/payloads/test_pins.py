"""Pinned segments stay, whoever wants to remove them, and cost a writer nothing."""

import gc
import os
from pathlib import Path

import pytest

from tensordb.payloads import Location, PayloadStore, SegmentStore

from .processes import DATABASE, in_forked_child, run
from .test_contract import STORES


@pytest.mark.parametrize("kind", sorted(STORES))
def test_a_pinned_segment_is_not_removed_until_every_pin_is_closed(kind: str, tmp_path: Path) -> None:
    store: PayloadStore = STORES[kind](tmp_path)
    place = store.append([b"abc"])
    store.flush()
    with store.pin([place.segment]), store.pin([place.segment, place.segment]):
        store.seal()
        assert [info.live for info in store.segments()] == [True]
        assert not store.remove(place.segment)
    assert [info.live for info in store.segments()] == [False]
    assert store.remove(place.segment)
    store.close()


def test_a_pin_that_is_collected_lets_go(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path / "segments", read_only=False, database_id=DATABASE)
    place = store.append([b"abc"])
    store.flush()
    pin = store.pin([place.segment])
    store.seal()
    assert not store.remove(place.segment)
    del pin
    gc.collect()
    assert store.remove(place.segment)
    store.close()


def test_a_segment_is_pinned_while_another_process_appends_to_it_and_after(tmp_path: Path) -> None:
    writer = SegmentStore(tmp_path / "segments", read_only=False, database_id=DATABASE)
    place = writer.append([b"first"])
    reader = SegmentStore(tmp_path / "segments", read_only=True, database_id=DATABASE)
    with reader.pin([place.segment]):
        assert writer.append([b"second"]).segment == place.segment
        writer.close()
        script = "print(store.remove(int(sys.argv[2])), [info.live for info in store.segments()])"
        assert run(script, tmp_path / "segments", place.segment) == "False [True]\n"
        # What comes next may still go into it.
        again = SegmentStore(tmp_path / "segments", read_only=False, database_id=DATABASE)
        assert again.append([b"third"]).segment == place.segment
        again.close()
    assert run("print(store.remove(int(sys.argv[2])))", tmp_path / "segments", place.segment) == "True\n"


def test_a_child_that_is_forked_neither_drops_the_pin_nor_needs_its_own(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path / "segments", read_only=False, database_id=DATABASE)
    place = store.append([b"abc"])
    store.flush()
    pin = store.pin([place.segment])
    in_forked_child(pin.close)
    store.seal()
    assert not store.remove(place.segment)
    pin.close()
    pin.close()
    assert store.remove(place.segment)
    store.close()


def test_pinning_what_is_not_there_is_left_to_reading_it(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path / "segments", read_only=True, database_id=DATABASE)
    before = set(os.listdir("/proc/self/fd"))
    with store.pin([7]):
        pass
    assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(Exception, match="is missing"):
        store.read(Location(7, 128, 1))
