"""repair writes segment files anew that are damaged beside their payloads."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest
import torch

from tensordb import CompressionConfig, TensorStorage
from tensordb.payloads.layout import BLOCK_BYTES
from tests.faults.programs import in_forked_child, made
from tests.faults.scenarios import build, contents


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 16
    file.write_bytes(content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build(tmp_path / "db")
    return tmp_path / "db"


@pytest.fixture
def segment(folder: Path) -> Path:
    (file,) = (folder / "segments").iterdir()
    return file


@pytest.mark.parametrize("position", [3, BLOCK_BYTES + 3, -3], ids=["header", "its copy", "footer"])
def test_what_is_damaged_beside_payloads_is_mended_and_nothing_is_lost(
    folder: Path, segment: Path, position: int
) -> None:
    with TensorStorage(folder) as db:
        before = contents(db)
    flip(segment, position)
    with TensorStorage(folder) as db:
        (said,) = db.verify().damaged_segments
        planned = db.maintenance.repair(dry_run=True)
        assert (planned.damaged_segments, planned.mended_segments) == ((said,), ())
        assert segment.exists(), "a dry run changes nothing"
        report = db.maintenance.repair()
        assert not report.ok
        assert report.damaged_segments == report.mended_segments == (said,)
        assert report.removed_records == report.damaged_tensors == report.removed_weights == ()
        assert not segment.exists()
        assert db.verify().ok
        assert contents(db) == before
        assert db.maintenance.repair().ok
    with TensorStorage(folder) as db:
        assert contents(db) == before


def test_a_damaged_payload_goes_and_its_neighbours_move(folder: Path, segment: Path) -> None:
    with TensorStorage(folder) as db:
        before = contents(db)
        place = db.sql(
            "SELECT position FROM tensordb.objects JOIN tensordb.records_1 USING (object_id) WHERE record_id = 'large1'"
        ).to_pylist()[0]["position"]
    flip(segment, 3)
    flip(segment, place + 200)
    with TensorStorage(folder) as db:
        report = db.maintenance.repair()
        assert [each.record_id for each in report.removed_records] == ["large1"]
        assert len(report.mended_segments) == 1
        assert db.verify().ok
        del before["d/large1"]
        assert contents(db) == before | {"dataset d": 14}


def test_a_file_that_somebody_writes_to_stays_until_it_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    with TensorStorage(folder) as writing, TensorStorage(folder) as other:
        writing.create_dataset("d")
        writing.insert("d", made(1, 9_000), record_id="a")
        (file,) = (folder / "segments").iterdir()
        flip(file, 3)
        report = other.maintenance.repair()
        assert len(report.damaged_segments) == 1
        assert report.mended_segments == ()
        writing.insert("d", made(2, 9_000), record_id="b")
        writing.close()
        assert len(other.maintenance.repair().mended_segments) == 1
        assert other.verify().ok
        for key, seed in (("a", 1), ("b", 2)):
            assert other.get_tensor_by_id("d", key).tensor.equal(made(seed, 9_000))


@pytest.mark.parametrize("preset", ["none", "lossless", "q4"])
def test_a_frame_of_deleted_rows_is_damage_of_no_record(tmp_path: Path, preset: str) -> None:
    folder, rows = tmp_path / "db", made(3, 16 * 4_000).reshape(16, 4_000)
    with TensorStorage(folder, compression_preset=preset) as db:
        db.create_dataset("d")
        keys = db.insert_many("d", rows)
        stored = {key: db.get_tensor_by_id("d", key).tensor for key in keys}
        (page,) = db.sql("SELECT position, stored_nbytes AS nbytes FROM tensordb.objects").to_pylist()
    (file,) = (folder / "segments").iterdir()
    flip(file, page["position"] + page["nbytes"] * 7 // 10)
    with TensorStorage(folder) as db:
        report = db.maintenance.repair()
        gone = {each.record_id for each in report.removed_records}
        assert 0 < len(gone) < 16
        assert (after := db.verify()).ok, after
        assert db.maintenance.repair().ok
        assert [key for key in keys if key not in gone] == [each.id for each in db.scan("d")]
        for record in db.scan("d"):
            assert record.tensor.equal(stored[record.id])


def test_damage_among_rows_that_were_deleted_before_costs_no_record(tmp_path: Path) -> None:
    folder, rows = tmp_path / "db", made(3, 16 * 4_000).reshape(16, 4_000)
    with TensorStorage(folder, compression_preset="none") as db:
        db.create_dataset("d")
        keys = db.insert_many("d", rows)
        for key in keys[8:]:
            db.delete_tensor("d", key)
    (file,) = (folder / "segments").iterdir()
    flip(file, file.read_bytes().index(rows[15].numpy().tobytes()) + 8_000)
    with TensorStorage(folder) as db:
        report = db.verify("d")
        assert report.damaged == ()
        assert ["rows that none of its records names" in each for each in report.damaged_segments] == [True]
        report = db.maintenance.repair()
        assert report.removed_records == ()
        assert report.mended_segments == report.damaged_segments != ()
        assert db.verify().ok
        for key, row in zip(keys[:8], rows, strict=False):
            assert db.get_tensor_by_id("d", key).tensor.equal(row)


def test_exceptions_of_deleted_rows_may_be_damaged(tmp_path: Path) -> None:
    folder, rows = tmp_path / "db", made(3, 64 * 2_000).reshape(64, 2_000)
    rows[40:, ::30] = torch.nan
    config = CompressionConfig("none", quantization="int8", quantization_kwargs={"granularity": "per_tensor"})
    with TensorStorage(folder, compression_config=config) as db:
        db.create_dataset("d")
        keys = db.insert_many("d", rows)
        kept = {key: db.get_tensor_by_id("d", key).tensor for key in keys[:32]}
        for key in keys[32:]:
            db.delete_tensor("d", key)
        (page,) = db.sql("SELECT position, stored_nbytes AS nbytes FROM tensordb.objects").to_pylist()
    (file,) = (folder / "segments").iterdir()
    flip(file, page["position"] + page["nbytes"] - 100)
    with TensorStorage(folder) as db:
        report = db.maintenance.repair()
        assert report.removed_records == ()
        assert report.mended_segments == report.damaged_segments != ()
        assert db.verify().ok
        assert {each.id: each.encoding.quantization for each in db.scan("d")} == dict.fromkeys(kept, "int8")
        assert all(db.get_tensor_by_id("d", key).tensor.equal(tensor) for key, tensor in kept.items())


def test_a_file_of_which_all_was_damaged_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    with TensorStorage(folder, compression_preset="none") as db:
        db.create_dataset("d")
        db.insert("d", made(1, 9_000), record_id="a")
    (file,) = (folder / "segments").iterdir()
    flip(file, 3)
    flip(file, file.stat().st_size // 2)
    with TensorStorage(folder) as db:
        report = db.maintenance.repair()
        assert [each.record_id for each in report.removed_records] == ["a"]
        assert report.mended_segments == report.damaged_segments != ()
        assert not file.exists()
        assert db.verify().ok


def test_what_cannot_be_mended_is_said_beside_what_was_removed(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    with TensorStorage(folder, compression_preset="none") as db:
        db.create_dataset("d")
        db.insert("d", made(1, 9_000), record_id="a")
        db.insert("d", made(2, 2_000_000), record_id="b")
    (file,) = (folder / "segments").iterdir()
    flip(file, 3)
    flip(file, file.read_bytes().index(made(1, 9_000).numpy().tobytes()[:100]))
    in_forked_child(lambda: _repair_without_room(folder))
    with TensorStorage(folder, read_only=True) as db:
        report = db.maintenance.repair()
        assert report.mended_segments == ()
        assert report.mending_stopped is not None
        assert "read_only" in report.mending_stopped
    with TensorStorage(folder) as db:
        assert len(db.maintenance.repair().mended_segments) == 1
        assert db.verify().ok
        assert db.get_tensor_by_id("d", "b").tensor.equal(made(2, 2_000_000))


def _repair_without_room(folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with TensorStorage(folder) as db:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        report = db.maintenance.repair()
        assert [each.record_id for each in report.removed_records] == ["a"]
        assert report.mended_segments == ()
        assert report.damaged_segments
        assert report.mending_stopped
        assert db.get_tensor_by_id("d", "b").tensor.equal(made(2, 2_000_000))
