"""repair takes out what is damaged and nothing else, and says what."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tensordb import TensorStorage
from tensordb.cli import main
from tensordb.errors import ConflictError

from .conftest import Sample
from .programs import made
from .scenarios import build, contents


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 16
    file.write_bytes(content)


def place_of(folder: Path, key: str) -> tuple[Path, int]:
    """Return the segment file of a record, and a byte in the middle of its payload."""
    with TensorStorage(folder, read_only=True) as db:
        found = db.sql(
            "SELECT segment, position, stored_nbytes FROM tensordb.objects JOIN tensordb.records_1 USING (object_id) "
            "WHERE record_id = ?",
            [key],
        ).to_pylist()[0]
    return folder / "segments" / f"{found['segment']:016x}.seg", found["position"] + found["stored_nbytes"] // 2


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that is never changed."""
    folder = tmp_path_factory.mktemp("built") / "db"
    build(folder)
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "db"))


@pytest.fixture(scope="module")
def two(built: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object], Path]:
    """A database of two segments, what it holds, and a segment of another; they are never changed."""
    folder = Path(shutil.copytree(built, tmp_path_factory.mktemp("two") / "db"))
    with TensorStorage(folder) as holder, TensorStorage(folder) as db:  # each appends to a segment of its own
        holder.insert("d", made(60, 9_000), record_id="held")
        db.insert("d", made(61, 9_000), record_id="beside")
        before = contents(db)
    foreign = tmp_path_factory.mktemp("foreign") / "db"
    build(foreign)
    return folder, before, next((foreign / "segments").iterdir())


def test_repair_removes_the_damaged_record_names_it_and_keeps_every_other_thing(folder: Path) -> None:
    flip(*place_of(folder, "large1"))
    with TensorStorage(folder) as db:
        looked = db.maintenance.repair(dry_run=True)
        assert [each.record_id for each in looked.removed_records] == ["large1"]
        assert not looked.ok
        assert not db.verify().ok, "a dry run changes nothing"
        report = db.maintenance.repair()
        assert report.removed_records == looked.removed_records
        assert "checksum" in report.removed_records[0].reason or "damaged" in report.removed_records[0].reason
        assert db.verify().ok
        assert db.count("d") == report.records - 1
        assert db.get_tensor_by_id("d", "large2").tensor.equal(made(12, 6_000))
        db.maintenance.compact(min_dead=0)
        assert db.maintenance.repair().ok


def test_repair_of_a_sound_database_removes_nothing(folder: Path) -> None:
    with TensorStorage(folder) as db:
        before = contents(db)
        report = db.maintenance.repair(drop_checkpoints=True)
        assert report.ok
        assert (report.records, report.checkpoints, report.weights) == (15, 2, 2)
        assert contents(db) == before
        with db.transaction(), pytest.raises(ConflictError, match="transaction"):
            db.maintenance.repair()


def test_a_missing_segment_costs_what_was_in_it_and_the_rest_works_again(folder: Path) -> None:
    with TensorStorage(folder) as db:
        kept = {f"small{i}" for i in range(4)}
    for file in (folder / "segments").iterdir():
        file.unlink()
    with TensorStorage(folder) as db:
        report = db.maintenance.repair()
        assert {each.record_id for each in report.removed_records} == {f"large{i}" for i in range(3)} | {
            f"page{i}" for i in range(8)
        }
        assert {(each.run, each.step) for each in report.damaged_tensors} == {("run", 0), ("run", 1)}
        assert len(report.removed_weights) == 2
        assert len(db.checkpoints.list()) == 2, "checkpoints go only when that was asked for"
        assert len(db.maintenance.repair(drop_checkpoints=True).removed_checkpoints) == 2
        assert db.checkpoints.list() == []
        assert db.verify().ok
        assert {record.id for record in db.scan("d")} == kept
        db.insert("d", made(1, 9_000))
        assert db.verify().ok


def cut(first: Path, second: Path, foreign: Path) -> None:
    first.write_bytes(first.read_bytes()[: first.stat().st_size // 2])


def empty(first: Path, second: Path, foreign: Path) -> None:
    first.write_bytes(b"")


def swap(first: Path, second: Path, foreign: Path) -> None:
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def double(first: Path, second: Path, foreign: Path) -> None:
    shutil.copy(second, first)


def replace_by_foreign(first: Path, second: Path, foreign: Path) -> None:
    shutil.copy(foreign, first)


@pytest.mark.parametrize("mishap", [cut, empty, swap, double, replace_by_foreign])
def test_whatever_happens_to_a_segment_file_verify_finds_it_and_repair_saves_the_rest(
    two: tuple[Path, dict[str, object], Path], tmp_path: Path, mishap: Callable[[Path, Path, Path], None]
) -> None:
    folder, before = Path(shutil.copytree(two[0], tmp_path / "db")), two[1]
    segments = sorted((folder / "segments").iterdir(), key=lambda each: -each.stat().st_size)
    mishap(segments[0], segments[1], two[2])
    with TensorStorage(folder) as db:
        assert not db.verify().ok
        report = db.maintenance.repair(drop_checkpoints=True)
        assert not report.ok
        assert db.verify().ok
        gone = {f"d/{each.record_id}" for each in report.removed_records}
        gone |= {f"{each.run}@{each.step}" for each in report.damaged_tensors}
        gone |= {f"{'weight' if each.base_hash is None else 'delta'} {each.hash}" for each in report.removed_weights}
        kept = {key: value for key, value in before.items() if key not in gone and key != "dataset d"}
        found = contents(db)
        assert found.pop("dataset d") == sum(key.startswith("d/") for key in kept)
        assert found == kept


def test_a_copy_of_a_segment_under_another_name_is_told_from_it_and_collected(folder: Path) -> None:
    (segment,) = (folder / "segments").iterdir()
    copy = segment.with_name(f"{'5' * 16}.seg")
    shutil.copy(segment, copy)
    with TensorStorage(folder) as db:
        before = contents(db)
        assert db.verify().ok
        db.maintenance.gc()
        assert contents(db) == before
        assert db.verify().ok
    assert segment.exists()
    assert not copy.exists()


def told(*arguments: object) -> tuple[int, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([str(each) for each in arguments])
    return code, out.getvalue()


def test_verify_finds_the_segment_of_a_copy_that_went_its_own_way(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    with TensorStorage(one, compression_preset="none") as db:
        db.create_dataset("d")
        db.insert("d", made(1, 9_000), record_id="common")
    shutil.copytree(one, other)
    for seed, folder in enumerate((one, other)):  # both go on in the same file, as every byte of it is the same
        with TensorStorage(folder, compression_preset="none") as db:
            db.insert("d", made(seed + 2, 9_000), record_id="alone")
            db.insert_many("d", made(seed + 4, 9_000).reshape(90, 100), record_ids=[f"row{i}" for i in range(90)])
    (file,) = (one / "segments").iterdir()
    shutil.copy(other / "segments" / file.name, file)
    with TensorStorage(one) as db:
        assert {each.record_id for each in db.verify().damaged} == {"alone", *(f"row{i}" for i in range(90))}
        assert len(db.maintenance.repair().removed_records) == 91
        assert [record.id for record in db.query("d")] == ["common"]
        assert db.verify().ok


def test_the_command_repairs_in_place_and_into_a_new_folder(folder: Path, tmp_path: Path) -> None:
    assert told("repair", folder)[0] == 0
    flip(*place_of(folder, "large1"))
    code, text = told("repair", folder, "--dry-run")
    assert code == 1
    assert "damaged: d large1" in text
    code, text = told("repair", folder, tmp_path / "new", "--json")
    assert code == 1
    assert [each["record_id"] for each in json.loads(text)["removed_records"]] == ["large1"]
    assert told("repair", tmp_path / "new")[0] == 0
    assert told("repair", folder)[0] == 1
    assert told("verify", folder)[0] == 0
    assert told("repair", tmp_path / "nowhere")[0] == 2
    assert not (tmp_path / "nowhere").exists()


def test_repair_saves_every_sound_record_of_a_database_with_many_damaged_ones(sample: Sample, tmp_path: Path) -> None:
    folder = sample.copy(tmp_path / "db")
    for file in (folder / "segments").iterdir():
        for position in range(2_000, file.stat().st_size, 9_000):
            flip(file, position)
    with TensorStorage(folder) as db:
        gone = {each.record_id for each in db.maintenance.repair().removed_records}
        assert gone
        assert db.verify().ok
        left = {record.id: record.tensor for record in db.scan("d")}
        assert left.keys() == sample.tensors.keys() - gone
        assert all(tensor.equal(sample.tensors[key]) for key, tensor in left.items())
