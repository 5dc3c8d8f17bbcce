"""Segment files among processes, and how few of them remain."""

import contextlib
import gc
import os
import resource
from pathlib import Path

import pytest

from tensordb.errors import InvalidInputError, ReadOnlyError
from tensordb.payloads import Location, SegmentStore
from tensordb.payloads.base import Write

from .processes import DATABASE, fork, in_forked_child, run, start


def opened(folder: Path, **options: int) -> SegmentStore:
    return SegmentStore(folder, read_only=False, database_id=DATABASE, **options)


def test_another_process_reads_what_was_flushed(tmp_path: Path) -> None:
    store = opened(tmp_path)
    location = store.append([b"from the parent"])
    store.flush()
    output = run(
        "print(bytes(store.read(Location(*map(int, sys.argv[2:])))).decode())",
        tmp_path, location.segment, location.offset, location.length,
    )  # fmt: skip
    assert output == "from the parent\n"
    store.close()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at descriptors as Linux shows them")
def test_the_space_of_removed_segments_is_let_go_when_another_is_read(tmp_path: Path) -> None:
    def held() -> list[str]:
        links = [os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
        return [each for each in links if each.startswith(str(tmp_path)) and each.endswith("(deleted)")]

    writer = opened(tmp_path, max_segment_bytes=1000)
    reader = SegmentStore(tmp_path, read_only=True, database_id=DATABASE)
    for number in range(4):
        assert reader.read(writer.append([bytes([number]) * 900])) == bytes([number]) * 900
    writer.close()
    writer = opened(tmp_path, max_segment_bytes=1000)
    assert all(writer.remove(info.id) for info in writer.segments())
    assert len(held()) == 4
    last = writer.append([b"last" * 200])
    assert reader.read(last) == b"last" * 200
    gc.collect()
    assert held() == []
    writer.close()
    reader.close()


def test_reader_follows_a_file_that_grew_after_it_was_mapped(tmp_path: Path) -> None:
    writer = opened(tmp_path)
    first = writer.append([b"first"])
    reader = SegmentStore(tmp_path, read_only=True, database_id=DATABASE)
    early = reader.read(first)
    later = [writer.append([bytes([number]) * 100_000]) for number in range(50)]
    assert [reader.read(location) for location in later] == [bytes([number]) * 100_000 for number in range(50)]
    assert early == b"first"
    writer.close()
    reader.close()


def test_store_with_nothing_appended_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "segments"
    store = opened(folder)
    store.flush()
    assert store.segments() == []
    store.close()
    assert not folder.exists()
    store = opened(folder)
    with pytest.raises(TypeError, match="contiguous"):
        store.append([memoryview(bytes(10))[::2]])
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_short_runs_one_after_another_share_a_file(tmp_path: Path) -> None:
    kept: list[tuple[Location, bytes]] = []
    for number in range(40):
        store = opened(tmp_path)
        payload = bytes([number]) * (number + 1)
        kept.append((store.append([payload]), payload))
        store.flush()
        if number % 2:
            store.close()
        else:
            del store  # a store that is forgotten gives its file up all the same
            gc.collect()
    assert len(list(tmp_path.iterdir())) == 1
    assert len({(location.segment, location.offset) for location, _ in kept}) == 40
    reader = SegmentStore(tmp_path, read_only=True, database_id=DATABASE)
    assert all(reader.read(location) == payload for location, payload in kept)
    reader.close()


def test_script_that_forgets_to_close_exits_silently_and_shares_its_file(tmp_path: Path) -> None:
    for _ in range(2):
        run("store.append([b'payload']); store.flush()", tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_stores_open_at_the_same_time_never_share_a_file(tmp_path: Path) -> None:
    stores = [opened(tmp_path) for _ in range(3)]
    locations = [store.append([b"payload"]) for store in stores]
    assert len({location.segment for location in locations}) == 3
    assert not any(other.remove(location.segment) for other in stores for location in locations)
    for store in stores:
        store.close()


def test_file_of_a_killed_writer_is_not_appended_to_but_stays_readable_and_removable(tmp_path: Path) -> None:
    process = start(
        "at = store.append([b'payload']); store.flush(); print(at.segment, at.offset, flush=True); input()", tmp_path
    )
    assert process.stdout is not None
    segment, offset = map(int, process.stdout.readline().split())
    store = opened(tmp_path)
    assert [(info.id, info.live) for info in store.segments()] == [(segment, True)]
    assert not store.remove(segment)
    process.kill()
    process.communicate(timeout=60)
    assert [(info.id, info.live) for info in store.segments()] == [(segment, False)]
    assert store.append([b"other"]).segment != segment
    view = store.read(Location(segment, offset, 7))
    assert store.remove(segment)
    assert view == b"payload"
    store.close()


def test_full_segment_is_followed_by_another_and_a_large_payload_gets_its_own(tmp_path: Path) -> None:
    store = opened(tmp_path, max_segment_bytes=10_000)
    locations = [store.append([bytes([number]) * 4000]) for number in range(6)]
    large = store.append([b"L" * 50_000])
    assert len({location.segment for location in locations}) == 3
    assert large.segment not in {location.segment for location in locations}
    assert not any(store.remove(location.segment) for location in locations)
    with store.writing():
        store.flush()
    assert all(store.read(location)[:1] == bytes([number]) for number, location in enumerate(locations))
    assert store.remove(locations[0].segment)
    store.close()


def test_payloads_that_grow_at_the_same_time_share_as_many_files_as_threads(tmp_path: Path) -> None:
    with contextlib.closing(opened(tmp_path)) as store:
        for _ in range(20):

            def outer(write: Write) -> bytes:
                write([b"outer"])
                assert store.append_growing(4, 100, lambda inner: inner([b"inner"]) or b"head") is not None
                store.append([b"between"])
                return b"head"

            with store.writing():
                assert store.append_growing(4, 100, outer) is not None
                store.flush()
        assert len(store.segments()) == 2
        store.seal()
        assert not any(segment.live for segment in store.segments())


def test_sealed_segment_is_left_alone_by_later_stores(tmp_path: Path) -> None:
    store = opened(tmp_path)
    sealed = store.append([b"mostly dead"]).segment
    store.flush()
    store.seal()
    store.close()
    later = opened(tmp_path)
    assert later.append([b"new"]).segment != sealed
    assert later.remove(sealed)
    later.close()


def test_child_process_does_not_keep_the_parents_segment_alive(tmp_path: Path) -> None:
    store = opened(tmp_path)
    segment = store.append([b"payload"]).segment

    def child() -> None:
        assert store.segments()[0].live  # the parent's

    in_forked_child(child)
    ready, held = os.pipe()
    child_id = fork()
    if child_id == 0:
        os.close(held)
        os.read(ready, 1)
        os._exit(0)
    store.close()
    other = opened(tmp_path)
    assert other.remove(segment)
    os.close(held)
    os.waitpid(child_id, 0)
    os.close(ready)
    other.close()


def test_interleaved_appends_and_kept_views_do_not_use_up_descriptors(tmp_path: Path) -> None:
    store = opened(tmp_path)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    views = [store.read(store.append([number.to_bytes(4, "little")])) for number in range(min(limit, 4096) + 50)]
    assert all(view == number.to_bytes(4, "little") for number, view in enumerate(views))
    store.close()


def test_more_segments_than_maps_are_kept_open_stay_readable(tmp_path: Path) -> None:
    store = opened(tmp_path, max_segment_bytes=200)
    with store.writing():
        locations = [store.append([number.to_bytes(4, "little") * 20]) for number in range(300)]
    for _ in range(2):
        assert all(store.read(at) == number.to_bytes(4, "little") * 20 for number, at in enumerate(locations))
    assert len(store.segments()) == 300
    store.close()


def test_read_only_store_refuses_to_write(tmp_path: Path) -> None:
    reader = SegmentStore(tmp_path / "missing", read_only=True, database_id=DATABASE)
    assert reader.segments() == []
    for call in (lambda: reader.append([b"x"]), lambda: reader.remove(1)):
        with pytest.raises(ReadOnlyError, match="read-only"):
            call()
    reader.flush()
    reader.close()
    with pytest.raises(InvalidInputError, match="3 bytes"):
        SegmentStore(tmp_path, read_only=True, database_id=b"abc")


@pytest.mark.slow
def test_payload_beyond_two_gibibytes(tmp_path: Path) -> None:
    store = opened(tmp_path)
    part = bytes(range(256)) * (1 << 15)
    location = store.append([part] * 260 + [b"the end"])
    store.flush()
    view = store.read(location)
    assert len(view) == 260 * (8 << 20) + 7 > 1 << 31
    assert view[-7:] == b"the end"
    assert all(view[index * len(part) : (index + 1) * len(part)] == part for index in (0, 128, 255, 259))
    store.close()


def test_what_is_no_file_is_no_segment_whatever_its_name(tmp_path: Path) -> None:
    store = opened(tmp_path)
    segment = store.append([b"payload"]).segment
    (tmp_path / f"{segment ^ 1:016x}.seg").mkdir()
    os.mkfifo(tmp_path / f"{segment ^ 2:016x}.seg")  # to open it would wait for a writer for ever
    (tmp_path / f"{segment ^ 3:016x}.seg").symlink_to(tmp_path / "nowhere")
    assert [info.id for info in store.segments()] == [segment]
    store.close()
