"""What every payload store promises, checked on segment files and on memory alike."""

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tensordb.errors import ConflictError, IntegrityError
from tensordb.payloads import Location, MemorySegments, PayloadStore, SegmentStore
from tensordb.payloads.base import Write

from .processes import DATABASE, in_forked_child

STORES: dict[str, Callable[[Path], PayloadStore]] = {
    "files": lambda folder: SegmentStore(folder / "segments", read_only=False, database_id=DATABASE),
    "memory": lambda _: MemorySegments(),
}


@pytest.fixture(params=sorted(STORES))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PayloadStore]:
    opened = STORES[request.param](tmp_path)
    yield opened
    opened.close()


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1 << 20])
def test_payload_of_any_size_reads_back_before_and_after_flush(store: PayloadStore, size: int) -> None:
    payload = random.Random(size).randbytes(size)
    store.append([b"x"])
    location = store.append([payload])
    after = store.append([b"y"])
    assert location.length == size
    assert location.offset % 64 == 0
    assert 0 < location.segment < 1 << 63
    assert store.read(location) == payload
    store.flush()
    assert store.read(location) == payload
    assert store.read(after) == b"y"
    store.check(location)


def test_buffers_of_every_kind_are_joined(store: PayloadStore) -> None:
    parts = [
        b"ab",
        bytearray(b"cd"),
        memoryview(b"ef"),
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.empty((0, 4)),
        b"",
    ]
    location = store.append(parts)
    assert store.read(location) == b"abcdef" + np.arange(6, dtype=np.int16).tobytes()
    assert store.read(store.append([])) == b""


def test_a_payload_that_grows_is_whole_once_its_first_bytes_are_there(store: PayloadStore) -> None:
    before = store.append([b"before"])

    def produce(write: Write) -> bytes:
        write([b"middle ", np.arange(3, dtype=np.uint8)])
        store.append([b"between"])
        write([])
        write([b" end"])
        return b"first "

    location = store.append_growing(6, 100, produce)
    after = store.append([b"after"])
    assert location is not None
    assert location.offset % 64 == 0
    store.flush()
    assert bytes(store.read(location)) == b"first middle \0\1\2 end"
    assert (bytes(store.read(before)), bytes(store.read(after))) == (b"before", b"after")


def test_a_payload_that_is_given_up_leaves_nothing(store: PayloadStore) -> None:
    def given_up(write: Write) -> None:
        write([b"much" * 1000])

    def failing(write: Write) -> bytes:
        write([b"much" * 1000])
        raise RuntimeError("no more")

    store.append([b"before"])
    used = store.segments()[0].nbytes
    assert store.append_growing(10, 5000, given_up) is None
    with pytest.raises(RuntimeError, match="no more"):
        store.append_growing(10, 5000, failing)
    assert store.segments()[0].nbytes == used
    assert bytes(store.read(store.append([b"after"]))) == b"after"


def test_a_segment_that_a_payload_grows_in_can_be_sealed(store: PayloadStore) -> None:
    def produce(write: Write) -> bytes:
        write([b"rest"])
        store.seal()
        return b"first "

    with store.writing():
        location = store.append_growing(6, 100, produce)
        assert location is not None
        other = store.append([b"other"])
        assert other.segment != location.segment or isinstance(store, MemorySegments)
        store.flush()
    assert bytes(store.read(location)) == b"first rest"


def test_threads_grow_payloads_and_append_at_once(store: PayloadStore) -> None:
    kept: list[tuple[Location, bytes]] = []

    def work(number: int) -> None:
        chance = random.Random(number)
        for _ in range(20):
            parts = [chance.randbytes(chance.randrange(5000)) for _ in range(5)]

            def produce(write: Write, parts: list[bytes] = parts) -> bytes:
                for part in parts[1:]:
                    write([part])
                return parts[0]

            location = store.append_growing(len(parts[0]), 25000, produce)
            assert location is not None
            kept.append((location, b"".join(parts)))
            kept.append((store.append([parts[0]]), parts[0]))
            store.flush()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) == 160
    assert all(bytes(store.read(location)) == payload for location, payload in kept)


def test_more_buffers_than_the_system_writes_at_once(store: PayloadStore) -> None:
    buffers = [index.to_bytes(2, "little") * (index % 5) for index in range(5000)]
    assert store.read(store.append(buffers)) == b"".join(buffers)


def test_part_of_a_payload_can_be_read(store: PayloadStore) -> None:
    store.append([b"before"])
    whole = store.append([bytes(range(200))])
    assert store.read(Location(whole.segment, whole.offset + 50, 7)) == bytes(range(50, 57))


def test_views_are_read_only_and_keep_what_was_appended(store: PayloadStore) -> None:
    source = bytearray(b"original")
    view = store.read(store.append([source]))
    source[:] = b"changed!"
    assert view == b"original"
    assert view.readonly


def test_views_outlive_removal_and_close(store: PayloadStore) -> None:
    location = store.append([b"kept" * 1000])
    store.flush()
    view = store.read(location)
    store.seal()
    assert store.remove(location.segment)
    store.check(location)
    store.close()
    assert view == b"kept" * 1000


def test_threads_append_and_read_at_the_same_time(store: PayloadStore) -> None:
    wrong: list[object] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        kept = []
        for _ in range(150):
            payload = chance.randbytes(chance.randrange(3000))
            kept.append((store.append([payload[:100], payload[100:]]), payload))
            location, expected = chance.choice(kept)
            if store.read(location) != expected:
                wrong.append(location)
        store.flush()
        wrong.extend(location for location, payload in kept if store.read(location) != payload)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_segment_in_use_is_not_removed_until_sealed(store: PayloadStore) -> None:
    location = store.append([b"payload"])
    store.flush()
    assert [(info.id, info.live) for info in store.segments()] == [(location.segment, True)]
    assert not store.remove(location.segment)
    store.seal()
    assert [(info.id, info.live) for info in store.segments()] == [(location.segment, False)]
    later = store.append([b"next"])
    assert later.segment != location.segment
    assert store.remove(location.segment)
    assert not store.remove(location.segment)
    assert [info.id for info in store.segments()] == [later.segment]
    with pytest.raises(IntegrityError, match=r"missing|nothing is stored"):
        store.read(location)
    assert store.read(later) == b"next"


def test_segment_written_in_a_block_is_not_removed_before_the_block_ends(store: PayloadStore) -> None:
    with store.writing():
        with store.writing():
            location = store.append([b"not committed yet"])
            store.flush()
        store.seal()
        assert not store.remove(location.segment)
    assert store.remove(location.segment)


def test_segment_sizes_count_everything_in_them(store: PayloadStore) -> None:
    assert store.segments() == []
    store.append([bytes(1000)])
    last = store.append([bytes(500)])
    assert [info.nbytes for info in store.segments()] == [last.offset + 500]


def test_location_that_was_never_written_is_an_integrity_error(store: PayloadStore) -> None:
    location = store.append([bytes(100)])
    for wrong in (
        Location(location.segment, location.offset, 101),
        Location(location.segment, location.offset + 64, 100),
        Location(location.segment, -64, 10),
        Location(location.segment, location.offset, -1),
        Location(location.segment ^ 1, location.offset, 10),
    ):
        with pytest.raises(IntegrityError):
            store.read(wrong)
    assert store.read(location) == bytes(100)


def test_closed_store_says_so_and_closes_twice(store: PayloadStore) -> None:
    location = store.append([b"payload"])
    store.close()
    store.close()
    for call in (lambda: store.append([b"more"]), lambda: store.read(location), store.seal):
        with pytest.raises(ConflictError, match="closed"):
            call()


def test_parent_and_forked_child_both_go_on(store: PayloadStore) -> None:
    before = store.append([b"before the fork"])
    store.flush()

    def child() -> None:
        with store.writing():
            own = store.append([b"of the child"])
            store.flush()
        assert store.read(own) == b"of the child"
        assert store.read(before) == b"before the fork"
        if isinstance(store, SegmentStore):
            assert own.segment != before.segment
        store.close()

    in_forked_child(child)
    after = store.append([b"of the parent"])
    store.flush()
    assert after.segment == before.segment
    assert store.read(before) == b"before the fork"
    assert store.read(after) == b"of the parent"
    assert not store.remove(before.segment)
