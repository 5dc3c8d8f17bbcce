"""import and export on real databases and files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tensordb import TensorStorage

from .conftest import Run


def test_export_and_import_bring_a_dataset_to_another_database(run: Run, folder: Path, tmp_path: Path) -> None:
    code, out, err = run("export", folder, "weights", tmp_path / "w.parquet")
    assert (code, err) == (0, "")
    assert "5 records" in out
    code, out, err = run("import", tmp_path / "new.tdb", "copy", tmp_path / "w.parquet", "--record-id", "record_id")
    assert (code, out, err) == (0, "imported 5 records into copy, which has 5 now\n", "")
    with TensorStorage(folder, read_only=True) as old, TensorStorage(tmp_path / "new.tdb") as new:
        for record in old.get_dataset_with_metadata("weights"):
            found = new.get_tensor_by_id("copy", record.id)
            assert repr(found.metadata) == repr(record.metadata)
            assert found.tensor.equal(record.tensor)


def test_json_says_what_was_done_and_nothing_else(run: Run, folder: Path, tmp_path: Path) -> None:
    code, out, _ = run(
        "export", folder, "weights", tmp_path / "w.npz", "--where", "metadata.epoch >= ?", "--params", "[3]",
        "--order-by", "metadata.epoch DESC", "--column", "tensor", "--column", "epoch", "--json",
    )  # fmt: skip
    said = json.loads(out)
    assert (code, said["records"]) == (0, 2)
    assert said["nbytes"] == (tmp_path / "w.npz").stat().st_size
    assert np.load(tmp_path / "w.npz")["epoch"].tolist() == [4, 3]
    code, out, _ = run("import", tmp_path / "new.tdb", "w", tmp_path / "w.npz", "--tensor", "tensor", "--json")
    assert (code, json.loads(out)["records"], json.loads(out)["total"]) == (0, 2, 2)


def test_only_the_columns_that_are_named_are_imported(run: Run, folder: Path, tmp_path: Path) -> None:
    run(
        "export",
        folder,
        "weights",
        tmp_path / "w.parquet",
        "--column",
        "tensor",
        "--column",
        "epoch",
        "--column",
        "loss",
    )
    assert pq.read_schema(tmp_path / "w.parquet").names == ["tensor", "epoch", "loss"]
    code, *_ = run(
        "import", tmp_path / "new.tdb", "w", tmp_path / "w.parquet", "--metadata", "epoch", "--preset", "none"
    )
    assert code == 0
    with TensorStorage(tmp_path / "new.tdb") as db:
        assert db.get_dataset_with_metadata("w")[2].metadata == {"epoch": 2}


def test_a_folder_of_pictures_goes_in_and_out(run: Run, tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "in" / label).mkdir(parents=True)
        Image.new("RGB", (4, 3), (9, 8, 7)).save(tmp_path / "in" / label / "one.png")
    assert run("import", tmp_path / "db", "photos", tmp_path / "in").code == 0
    assert run("export", tmp_path / "db", "photos", tmp_path / "out", "--format", "images").code == 0
    assert len(list((tmp_path / "out").rglob("*.png"))) == 2
    assert {path.parent.name for path in (tmp_path / "out").rglob("*.png")} == {"cat", "dog"}


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (["import", "DB", "x", "nowhere.npy"], "nowhere.npy"),
        (["import", "DB", "x", "FILE", "--tensor", "no"], "'no'"),
        (["import", "DB", "x", "FILE", "--preset", "no"], "'no'"),
        (["import", "DB", "x", "FILE", "--format", "csv"], "csv"),
        (["export", "DB", "nothing", "out.parquet"], "nothing"),
        (["export", "DB", "weights", "out.unknown"], "out.unknown"),
        (["export", "DB", "weights", "FILE"], "exists"),
        (["export", "DB", "weights", "out.npy", "--where", "metadata.no = 1"], "no"),
        (["export", "DB", "weights", "out.npy", "--params", "[1]"], "--where"),
        (["export", "DB", "weights", "out.npy", "--column", "no"], "'no'"),
        (["export", "NODB", "weights", "out.npy"], "NODB"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2_and_leaves_no_file(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: list[str], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run("export", folder, "weights", "file.parquet")
    before = sorted(tmp_path.iterdir())
    place = {"DB": str(folder) if line[0] == "export" else "new.tdb", "FILE": "file.parquet"}
    code, out, err = run(*(place.get(word, word) for word in line))
    assert (code, out) == (2, "")
    assert err.startswith("tensordb: ")
    assert err.count("\n") == 1
    assert named in err
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "new.tdb"] == before


def test_a_damaged_record_stops_an_export_with_exit_code_1_and_no_file(
    run: Run, own_folder: Path, tmp_path: Path
) -> None:
    segment = next((own_folder / "segments").iterdir())
    damaged = bytearray(segment.read_bytes())
    damaged[len(damaged) // 2 :: 64] = bytes(len(damaged[len(damaged) // 2 :: 64]))
    segment.write_bytes(damaged)
    code, out, err = run("export", own_folder, "weights", tmp_path / "out" / "w.parquet")
    assert (code, out) == (1, "")
    assert err.startswith("tensordb: ")
    assert not (tmp_path / "out" / "w.parquet").exists()
