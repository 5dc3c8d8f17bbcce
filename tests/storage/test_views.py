"""copy=False: a tensor that aliases what is stored, where it is stored as it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tensordb import CompressionConfig, IntegrityError, InvalidInputError, TensorNotFoundError, TensorStorage

from .tensors import DTYPES, same, sample

Insert = Callable[[TensorStorage, torch.Tensor], str]


def inline(db: TensorStorage, tensor: torch.Tensor) -> str:
    """In the record's row; small tensors only."""
    return db.insert("data", tensor)


def segment(db: TensorStorage, tensor: torch.Tensor) -> str:
    """In a segment."""
    record_id = db.insert("data", tensor)
    db.maintenance.compact()
    return record_id


def paged(db: TensorStorage, tensor: torch.Tensor) -> str:
    """As a row in the middle of a page."""
    fill = sample(tensor.dtype, *tensor.shape, seed=1)
    return db.insert_many("data", [fill] * 700 + [tensor] + [fill] * 50)[700]


PLACES = [inline, segment, paged]


@pytest.fixture
def raw(data: TensorStorage) -> TensorStorage:
    data.set_compression_preset("none")
    return data


def view(db: TensorStorage, record_id: str, index: object = None) -> torch.Tensor:
    return db.get_tensor_by_id("data", record_id, index=index, copy=False).tensor


@pytest.mark.parametrize("place", PLACES)
def test_a_view_equals_the_tensor_and_shares_memory_with_the_next_view(raw: TensorStorage, place: Insert) -> None:
    tensors = [sample(dtype, 5, 3) for dtype in DTYPES]
    # What is compacted moves with the last of them.
    ids = [(inline if place is segment else place)(raw, tensor) for tensor in tensors[:-1]] + [place(raw, tensors[-1])]
    for record_id, tensor in zip(ids, tensors, strict=True):
        first, second = view(raw, record_id), view(raw, record_id)
        copied = raw.get_tensor_by_id("data", record_id).tensor
        assert same(first, tensor)
        assert first.is_contiguous()
        assert first.data_ptr() == second.data_ptr() != copied.data_ptr()
        assert first.data_ptr() % tensor.dtype.itemsize == 0
        # What pickling it, or sending it to a worker, takes.
        assert first.untyped_storage().nbytes() == 15 * tensor.dtype.itemsize


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (1, 1, 5), (700_001,)])
def test_views_of_every_shape(raw: TensorStorage, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    ids = [raw.insert("data", tensor), *raw.insert_many("data", torch.stack([tensor, -tensor]))]
    for record_id, wanted in zip(ids, (tensor, tensor, -tensor), strict=True):
        assert same(view(raw, record_id), wanted)


INDICES = [
    *(0, -1, slice(None), slice(2, 5), slice(None, None, 3), slice(5, 2), slice(3, 2, -1), ..., ()),
    *((1, 2), (..., 0), (slice(1, 4), -1), (0, slice(None), 1), (slice(None, None, 2), slice(1, 3), 0), (0, 0, 0)),
    *(np.int64(1), slice(np.int64(0), np.int64(2)), (slice(0, 0), 1), slice(100, 200)),
]


@pytest.mark.parametrize("place", PLACES)
def test_an_index_gives_a_view_of_a_part(raw: TensorStorage, place: Insert) -> None:
    tensor = sample(torch.bfloat16, 6, 5, 4)
    record_id = place(raw, tensor)
    whole = view(raw, record_id)
    begin, end = whole.data_ptr(), whole.data_ptr() + whole.nbytes
    for index in INDICES:
        part = view(raw, record_id, index)
        assert same(part, raw.get_tensor_by_id("data", record_id, index=index).tensor), index
        assert not part.numel() or begin <= part.data_ptr() < end


def test_a_view_of_part_of_a_large_tensor_has_its_strides(raw: TensorStorage) -> None:
    tensor = torch.arange(600_000.0).reshape(300, 2000)
    record_id = raw.insert("data", tensor)
    column = view(raw, record_id, (slice(10, 290, 7), 1999))
    assert column.stride() == (14_000,)
    assert same(column, tensor[10:290:7, 1999])
    assert view(raw, record_id, 150).data_ptr() - view(raw, record_id).data_ptr() == 150 * 8000


@pytest.mark.parametrize("place", PLACES)
def test_indices_that_cannot_be_viewed_are_refused(raw: TensorStorage, place: Insert) -> None:
    record_id = place(raw, torch.zeros(3, 4))
    for index in (3, -4, (0, 4), (0, 0, 0)):
        with pytest.raises(IndexError):
            view(raw, record_id, index)
    for index in ("a", 1.5, True, [0, 1], (..., ...), slice(None, None, 0)):
        with pytest.raises(InvalidInputError):
            view(raw, record_id, index)
    with pytest.raises(InvalidInputError, match=r"backwards.*copy=True"):
        view(raw, record_id, (slice(None), slice(None, None, -1)))


@pytest.mark.parametrize("preset", ["lossless", "fast", "archive", "fp16_only", "int8_only", "maximum"])
@pytest.mark.parametrize("many", [False, True])
def test_what_is_compressed_or_quantized_cannot_be_viewed(data: TensorStorage, preset: str, many: bool) -> None:
    data.set_compression_preset(preset)
    tensor = torch.arange(40_000.0).reshape(4, 100, 100) / 7
    record_id = data.insert_many("data", tensor)[2] if many else data.insert("data", tensor)
    for index in (None, 1, slice(0, 0)):
        with pytest.raises(InvalidInputError, match=r"copy=True.*'none'"):
            view(data, record_id, index)


def test_what_auto_found_incompressible_can_be_viewed(data: TensorStorage) -> None:
    noise = sample(torch.uint8, 100_000)
    assert same(view(data, data.insert("data", noise)), noise)


def test_arguments_that_contradict_a_view_are_refused(raw: TensorStorage) -> None:
    record_id = raw.insert("data", torch.zeros(4))
    for wrong in ({"out": torch.ones(4)}, {"device": "cpu"}, {"out": torch.ones(4), "device": "cpu"}):
        with pytest.raises(InvalidInputError, match="copy=False"):
            raw.get_tensor_by_id("data", record_id, copy=False, **wrong)  # type: ignore[arg-type]
    for wrong in (None, 0, "no"):
        with pytest.raises(InvalidInputError, match="copy"):
            raw.get_tensor_by_id("data", record_id, copy=wrong)  # type: ignore[arg-type]
    with pytest.raises(TensorNotFoundError):
        raw.get_tensor_by_id("data", "none", copy=False)


@pytest.mark.parametrize("place", PLACES)
def test_a_view_outlives_its_record_compaction_and_the_database(raw: TensorStorage, place: Insert) -> None:
    tensor = torch.randn(30, 20)
    record_id = place(raw, tensor)
    seen = view(raw, record_id)
    raw.insert_many("data", torch.randn(50, 2000))
    raw.delete_where("data", "true")
    raw.maintenance.compact()
    raw.maintenance.gc()
    assert same(seen, tensor)
    raw.delete_dataset("data")
    raw.close()
    assert same(seen, tensor)


def test_a_view_stays_what_it_was_when_other_segments_come_and_go(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "db", compression_preset="none") as db:
        db.create_dataset("data")
        kept = {}
        for step in range(6):
            tensor = torch.randn(100_000)
            record_id = db.insert("data", tensor)
            kept[record_id] = (view(db, record_id), tensor)
            db.maintenance.compact()
            if step % 2:
                db.delete_tensor("data", record_id)
    assert all(same(seen, tensor) for seen, tensor in kept.values())


def test_writing_to_a_mapped_view_ends_the_process_and_not_the_data(tmp_path: Path) -> None:
    tensor = torch.randn(50_000)
    with TensorStorage(tmp_path / "db", compression_preset="none") as db:
        db.create_dataset("data")
        db.insert("data", tensor, record_id="a")
    program = (
        "import sys; from tensordb import TensorStorage\n"
        "db = TensorStorage(sys.argv[1], read_only=True)\n"
        "db.get_tensor_by_id('data', 'a', copy=False).tensor.zero_()"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "db")], capture_output=True, timeout=120)
    assert done.returncode in (-signal.SIGSEGV, -signal.SIGBUS)
    with TensorStorage(tmp_path / "db", read_only=True) as db:
        assert db.verify().ok
        assert same(view(db, "a"), tensor)


def right_or_refused(db: TensorStorage, record_id: str, tensor: torch.Tensor) -> None:
    for again in (True, False, True):
        try:
            assert same(db.get_tensor_by_id("data", record_id, copy=again).tensor, tensor)
        except IntegrityError as error:
            assert record_id in str(error)  # noqa: PT017 - either is right


@pytest.mark.parametrize("size", [10, 50_000])
def test_what_is_written_to_a_view_of_memory_is_never_read_as_the_record(size: int) -> None:
    with TensorStorage(None, compression_preset="none") as db:
        db.create_dataset("data")
        record_id = db.insert("data", torch.ones(size))
        view(db, record_id).zero_()
        right_or_refused(db, record_id, torch.ones(size))


def test_what_is_written_to_a_view_of_a_small_payload_does_not_reach_the_disk(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "db", compression_preset="none") as db:
        db.create_dataset("data")
        record_id = db.insert("data", torch.ones(10))
        view(db, record_id).zero_()
        right_or_refused(db, record_id, torch.ones(10))
    with TensorStorage(tmp_path / "db") as db:
        assert same(view(db, record_id), torch.ones(10))


def flip(folder: Path, what: bytes) -> None:
    """Turn a bit of the first byte of `what` in the segment that holds it."""
    for file in (folder / "segments").glob("*.seg"):
        position = file.read_bytes().find(what)
        if position >= 0:
            with file.open("r+b") as stream:
                stream.seek(position)
                stream.write(bytes([what[0] ^ 1]))
            return
    raise AssertionError("not stored as it is")


@pytest.mark.parametrize("many", [False, True])
def test_a_flipped_bit_is_found_before_a_view_is_handed_out(tmp_path: Path, many: bool) -> None:
    folder, rows = tmp_path / "db", torch.randn(2000, 200)
    with TensorStorage(folder, compression_preset="none") as db:
        db.create_dataset("data")
        ids = db.insert_many("data", rows) if many else [db.insert("data", rows)]
        flip(folder, rows[1000].numpy().tobytes())
        if many:
            with pytest.raises(IntegrityError, match=ids[1000]):
                view(db, ids[1000])
            assert same(view(db, ids[0]), rows[0])
        else:
            for index in (None, 1000, (slice(900, 1100), 0), slice(None, None, 1999)):
                with pytest.raises(IntegrityError, match=ids[0]):
                    view(db, ids[0], index)
            assert same(view(db, ids[0], slice(0, 100)), rows[:100])


def test_a_segment_cut_short_is_an_error_and_no_crash(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "db", compression_preset="none") as db:
        db.create_dataset("data")
        record_id = db.insert("data", torch.randn(50_000))
        view(db, record_id)
        (file,) = (tmp_path / "db" / "segments").glob("*.seg")
        os.truncate(file, 4096)
        with pytest.raises(IntegrityError, match="cut short"):
            view(db, record_id)


def test_a_dataset_stored_raw_is_viewed_whatever_the_storage_writes_now(db: TensorStorage) -> None:
    db.create_dataset("data", compression_config=CompressionConfig("none"))
    rows = torch.randn(300, 384)
    for record_id, row in zip(db.insert_many("data", rows), rows, strict=True):
        assert same(view(db, record_id), row)
