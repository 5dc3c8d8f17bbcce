"""What was found damaged is looked at once more before it goes: what others mended or replaced meanwhile stays."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tensordb import RepairReport, TensorStorage, VerifyReport
from tensordb.catalog import damage
from tensordb.maintenance.marking import Findings
from tensordb.maintenance.repairing import remove_damaged


def made(seed: int) -> torch.Tensor:
    return torch.randn(6_000, generator=torch.Generator().manual_seed(seed))


def spoil(folder: Path) -> None:
    """Flip a bit in the middle of every object."""
    with TensorStorage(folder, read_only=True) as db:
        rows = db.sql("SELECT segment, position, stored_nbytes AS n FROM tensordb.objects").to_pylist()
    for row in rows:
        path = folder / "segments" / f"{row['segment']:016x}.seg"
        data = bytearray(path.read_bytes())
        data[row["position"] + row["n"] // 2] ^= 1
        path.write_bytes(data)


def removed(db: TensorStorage, found: VerifyReport) -> RepairReport:
    """Do the second half of a repair whose first half found this."""
    return remove_damaged(db._db, found, drop_checkpoints=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A database of two records, two weights and two checkpoints, of which every object is damaged."""
    with TensorStorage(tmp_path / "db") as db:
        db.create_dataset("d")
        for number in range(2):
            db.insert("d", made(number), record_id=f"r{number}")
            db.weights.store(made(10 + number), name=f"w{number}")
            db.checkpoints.save("run", {"w": made(20 + number)}, step=number, rng=False)
    shutil.copytree(tmp_path / "db", tmp_path / "sound")
    spoil(tmp_path / "db")
    return tmp_path / "db"


def test_only_what_nobody_mended_meanwhile_is_removed_and_named(folder: Path) -> None:
    with TensorStorage(folder) as db, TensorStorage(folder) as other:
        found = db.verify()
        assert (len(found.damaged), len(found.damaged_weights), len(found.damaged_tensors)) == (2, 2, 2)
        other.insert("d", made(0), record_id="again")
        other.weights.store(made(10))
        other.checkpoints.save("other", {"w": made(20)}, rng=False)
        report = removed(db, found)
        assert [each.record_id for each in report.removed_records] == ["r1"]
        assert [each.step for each in report.damaged_tensors] == [1]
        assert len(report.removed_checkpoints) == len(report.removed_weights) == 1
        assert sorted(record.id for record in db.scan("d")) == ["again", "r0"]
        assert [each.name for each in db.weights.list_weights()] == ["w0"]
        assert [(each.run, each.step) for each in db.checkpoints.list()] == [("run", 0), ("other", None)]
        assert other.verify().ok
        assert torch.equal(other.checkpoints.load("run", step=0)["model"]["w"], made(20))


def test_a_repair_that_finds_everything_mended_says_that_nothing_was_damaged(folder: Path) -> None:
    with TensorStorage(folder) as db, TensorStorage(folder) as other:
        found = db.verify()
        for number in range(2):
            other.insert("d", made(number))
            other.weights.store(made(10 + number))
            other.checkpoints.save("other", {"w": made(20 + number)}, step=number, rng=False)
        assert removed(db, found).ok
        assert (db.count("d"), len(db.weights.list_weights()), len(db.checkpoints.list())) == (4, 2, 4)
        assert db.verify().ok


def test_another_record_of_the_same_id_stays_even_when_it_is_damaged_itself(folder: Path) -> None:
    with TensorStorage(folder) as db:
        found = db.verify()
        with TensorStorage(folder) as other:
            for number in range(2):
                other.delete_tensor("d", f"r{number}")
                other.insert("d", made(30 + number), record_id=f"r{number}")
        assert removed(db, found).removed_records == ()
        assert torch.equal(db.get_tensor_by_id("d", "r0").tensor, made(30))
        found = db.verify()
        with TensorStorage(folder) as other:
            other.delete_tensor("d", "r0")
            other.insert("d", made(40), record_id="r0")
        db.close()
        spoil(folder)
    with TensorStorage(folder) as db:
        assert removed(db, found).removed_records == ()  # nobody had looked at this one
        assert [each.record_id for each in db.maintenance.repair().removed_records] == ["r1", "r0"]


def test_what_was_put_back_from_a_copy_stays(folder: Path) -> None:
    with TensorStorage(folder) as db:
        found = db.verify()
        for path in (folder / "segments").iterdir():
            path.unlink()
            shutil.copy(folder.parent / "sound" / "segments" / path.name, path)
        assert removed(db, found).ok
        assert db.verify().ok
        assert torch.equal(db.get_tensor_by_id("d", "r1").tensor, made(1))


def test_what_was_deleted_meanwhile_is_no_trouble(folder: Path) -> None:
    with TensorStorage(folder) as db, TensorStorage(folder) as other:
        found = db.verify()
        other.delete_dataset("d")
        other.checkpoints.delete_run("run")
        for each in other.weights.list_weights():
            other.weights.delete(each.hash)
        assert removed(db, found).ok
        assert db.verify().ok


def test_what_was_mended_before_it_could_be_marked_gets_no_mark(folder: Path) -> None:
    with TensorStorage(folder) as db:
        db.verify()
        with db._db.catalog.read() as con:
            marked = set(damage.marked(con))
        assert len(marked) == 6
        db.insert("d", made(0))
        Findings(damaged=set(marked)).mark(db._db)
        with db._db.catalog.read() as con:
            assert len(set(damage.marked(con))) == 5
