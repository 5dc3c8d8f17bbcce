"""Damaged, missing, swapped and foreign files, disks without space: a named error, and nothing else is lost."""

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensordb.errors import FormatError, IntegrityError, StorageFullError, StoreError
from tensordb.payloads import Location, SegmentStore, layout
from tensordb.payloads.files import store_error

from .processes import DATABASE, run


def opened(folder: Path, database_id: bytes = DATABASE) -> SegmentStore:
    return SegmentStore(folder, read_only=False, database_id=database_id)


def one_segment(folder: Path, payload: bytes, database_id: bytes = DATABASE) -> tuple[Path, Location]:
    store = opened(folder, database_id)
    location = store.append([payload])
    store.flush()
    store.close()
    return folder / f"{location.segment:016x}.seg", location


@pytest.mark.parametrize("mapped_before", [False, True])
def test_file_cut_short_is_an_error_and_no_crash(tmp_path: Path, mapped_before: bool) -> None:
    store = opened(tmp_path)
    first, second = store.append([b"a" * 5000]), store.append([b"b" * 50_000])
    if mapped_before:
        store.read(second)
    path = tmp_path / f"{first.segment:016x}.seg"
    os.truncate(path, second.offset + 10)
    with pytest.raises(IntegrityError) as caught:
        store.read(second)
    for part in (path.name, str(second.offset), "50000", str(second.offset + 10)):
        assert part in str(caught.value)
    with pytest.raises(IntegrityError, match="cut short"):
        store.check(second)
    assert store.read(first) == b"a" * 5000
    store.check(first)
    store.close()


def test_no_payload_ever_takes_the_place_of_one_that_was_cut_off(tmp_path: Path) -> None:
    path, location = one_segment(tmp_path, b"old tensor")
    os.truncate(path, location.offset)
    store = opened(tmp_path)
    assert store.append([b"new tensor"]).segment != location.segment
    with pytest.raises(IntegrityError, match="cut short"):
        store.read(location)
    store.close()


def test_missing_file_is_named(tmp_path: Path) -> None:
    path, location = one_segment(tmp_path, b"payload")
    path.unlink()
    store = opened(tmp_path)
    with pytest.raises(IntegrityError, match=f"{path.name} is missing"):
        store.read(location)
    assert not store.remove(location.segment)
    store.close()


def test_swapped_files_are_refused(tmp_path: Path) -> None:
    store, other = opened(tmp_path), opened(tmp_path)
    first, second = store.append([b"first"]), other.append([b"other"])
    store.close()
    other.close()
    one, two, aside = (tmp_path / name for name in (f"{first.segment:016x}.seg", f"{second.segment:016x}.seg", "aside"))
    one.rename(aside)
    two.rename(one)
    aside.rename(two)
    reader = opened(tmp_path)
    for location in (first, second):
        with pytest.raises(IntegrityError, match="renamed"):
            reader.read(location)
    assert reader.append([b"new"]).segment not in (first.segment, second.segment)
    reader.close()


def test_segment_of_another_database_is_refused(tmp_path: Path) -> None:
    path, location = one_segment(tmp_path / "a", b"payload", database_id=bytes(16))
    (tmp_path / "b").mkdir()
    shutil.copy(path, tmp_path / "b")
    store = opened(tmp_path / "b")
    with pytest.raises(IntegrityError, match="belongs to database 0000"):
        store.read(location)
    assert store.append([b"new"]).segment != location.segment
    store.close()


def test_any_flipped_bit_of_the_header_costs_no_payload(tmp_path: Path) -> None:
    path, location = one_segment(tmp_path, b"payload")
    content = bytearray(path.read_bytes())
    for position in range(layout.HEADER_BYTES):
        content[position] ^= 1 << position % 8
        path.write_bytes(content)
        store = SegmentStore(tmp_path, read_only=True, database_id=DATABASE)
        assert store.read(location) == b"payload"
        store.close()
        content[position] ^= 1 << position % 8


def test_header_damaged_in_both_copies_is_an_error(tmp_path: Path) -> None:
    path, location = one_segment(tmp_path, b"payload")
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    content[40 + layout.BLOCK_BYTES] ^= 1
    path.write_bytes(content)
    store = opened(tmp_path)
    with pytest.raises(IntegrityError, match="header are damaged"):
        store.read(location)
    store.close()


def test_header_of_a_later_version_asks_for_an_upgrade(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as later:
        later.setattr(layout, "VERSION", 2)
        _, location = one_segment(tmp_path, b"payload")
    store = opened(tmp_path)
    with pytest.raises(FormatError, match="format 2"):
        store.read(location)
    store.close()


def test_header_and_footer_bytes_of_format_1_never_change() -> None:
    header, footer = layout.pack_header(0x0123456789ABCDEF, DATABASE), layout.pack_footer(1, DATABASE, 192)
    block = "7464622d7365670a0100000000000000000102030405060708090a0b0c0d0e0fefcdab8967452301" + 16 * "00"
    assert header[:56].hex() == block
    assert header[:64] == header[64:]
    assert footer[:8] == b"tdb-end\n"
    assert (header[56:64].hex(), footer[56:].hex()) == ("2cd9ba4c607d89e7", "6b81fa15ba9a3cb1")


def test_file_size_limit_is_a_clear_error_and_work_goes_on_when_it_is_raised(tmp_path: Path) -> None:
    output = run(
        """
        first = store.append([b"a" * 40_000])
        store.flush()
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, most))
        for _ in range(2):
            try:
                store.append([b"b" * 10_000, b"b" * 90_000])
            except StorageFullError as error:
                print(error)
        small = store.append([b"c" * 100])
        store.flush()
        assert store.read(first) == b"a" * 40_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        large = store.append([b"d" * 100_000])
        store.flush()
        assert large.segment == first.segment, "the file was cut back to its last good end"
        assert [bytes(store.read(at)) for at in (first, small, large)] == [b"a" * 40_000, b"c" * 100, b"d" * 100_000]
        """,
        tmp_path,
    )
    assert output.count("writing 100000 bytes") == 2
    assert output.count("file size limit") == 2
    assert str(tmp_path) in output


def test_segment_that_cannot_be_begun_leaves_nothing_and_is_tried_again(tmp_path: Path) -> None:
    run(
        """
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, most))
        for _ in range(2):
            try:
                store.append([b"payload"])
            except StorageFullError:
                assert os.listdir(sys.argv[1]) == []
            else:
                raise AssertionError("no error")
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        assert store.read(store.append([b"payload"])) == b"payload"
        """,
        tmp_path,
    )


def test_folder_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "segments").write_bytes(b"a file, not a folder")
    store = opened(tmp_path / "segments")
    with pytest.raises(StoreError, match="segments") as caught:
        store.append([b"payload"])
    assert not isinstance(caught.value, StorageFullError)
    store.close()


def test_failed_sync_reaches_every_thread_once_and_the_segment_is_given_up(tmp_path: Path) -> None:
    store = opened(tmp_path / "segments")
    kept = store.append([b"flushed"])
    store.flush()
    appended, failed = threading.Event(), threading.Event()
    reported: list[str] = []

    def other_thread() -> None:
        store.append([b"lost as well"])
        appended.set()
        assert failed.wait(60)
        try:
            store.flush()
        except StoreError as error:
            reported.append(str(error))
        store.flush()

    thread = threading.Thread(target=other_thread)
    thread.start()
    assert appended.wait(60)
    lost = store.append([b"lost"])
    with descriptor_that_cannot_be_synced(store), pytest.raises(StoreError, match="syncing"):
        store.flush()
    failed.set()
    thread.join()
    assert ["another thread" in message for message in reported] == [True]
    again = store.append([b"again"])
    store.flush()
    assert again.segment != lost.segment
    assert [bytes(store.read(at)) for at in (kept, again)] == [b"flushed", b"again"]
    assert not store.remove(lost.segment)
    store.close()
    later = opened(tmp_path / "segments")
    assert later.append([b"later"]).segment == again.segment
    later.close()


@contextlib.contextmanager
def descriptor_that_cannot_be_synced(store: SegmentStore) -> Iterator[None]:
    """Put a pipe, which the system refuses to sync, where the store's open segment is."""
    assert store._appender is not None
    assert store._appender._active is not None
    descriptor = store._appender._active._descriptor
    segment, (reading, writing) = os.dup(descriptor), os.pipe()
    os.dup2(writing, descriptor, inheritable=False)
    try:
        yield
    finally:
        os.dup2(segment, descriptor, inheritable=False)
        for opened_here in (segment, reading, writing):
            os.close(opened_here)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_every_kind_of_full_disk_is_a_storage_full_error(number: int) -> None:
    error = store_error("writing to", "/some/where", OSError(number, os.strerror(number)))
    assert isinstance(error, StorageFullError)
    assert "/some/where" in str(error)
    assert os.strerror(number) in str(error)
