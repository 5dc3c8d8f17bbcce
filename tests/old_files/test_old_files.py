"""Databases of every format that there was stay readable and writable; one of a format to come is left alone."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import zipfile
from pathlib import Path

import duckdb
import pytest
import torch

from tensordb import FormatError, TensorStorage
from tensordb.catalog.schema import STEPS
from tests.storage.tensors import same

from .making import LOSSY, fill, records, state, weight
from .making import STEPS as SAVED

FILES = sorted(Path(__file__).parent.glob("format-*.zip"))
FORMATS = [int(re.findall(r"\d+", path.stem)[0]) for path in FILES]


@pytest.fixture(params=FILES, ids=[path.stem for path in FILES])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of an old database."""
    with zipfile.ZipFile(request.param) as archive:
        archive.extractall(tmp_path / "db")
    return tmp_path / "db"


def format_of(folder: Path) -> int:
    with duckdb.connect(str(folder / "catalog.duckdb"), read_only=True) as con:
        return int(con.execute("SELECT value FROM tensordb.info WHERE name = 'format'").fetchall()[0][0])


def digests(folder: Path) -> dict[str, str]:
    """Return what tells whether any byte of a folder changed, without the files that hold nothing but locks."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("lock", "gate")
    }


def assert_records(db: TensorStorage) -> None:
    assert db.list_datasets() == list(records())
    for name, content in records().items():
        assert [record.id for record in db.get_dataset_with_metadata(name)] == list(content)
        for key, (tensor, metadata, preset) in content.items():
            record = db.get_tensor_by_id(name, key)
            assert record.metadata == metadata
            if preset in LOSSY:
                assert record.encoding.quantization != "none"
                assert (record.tensor - tensor).abs().max() <= record.encoding.error.max_abs * (1 + 1e-6)
            else:
                assert same(record.tensor, tensor), key
    assert [record.id for record in db.query("kinds", "metadata.deep.list[1] = 2")] == ["large fast"]
    assert db.query("pages ü", "metadata.i = 7")[0].id == "page 7"


def assert_history(db: TensorStorage, *, checkpoints: bool, weights: bool) -> None:
    if checkpoints:
        assert db.checkpoints.runs() == ["run", "fork"]
        for run, step in [*(("run", step) for step in range(SAVED)), ("fork", 2)]:
            tree = db.checkpoints.load(run, step=step)
            assert tree["state"] == {"step": step}
            assert all(same(tree["model"][name], tensor) for name, tensor in state(step).items())
        assert db.checkpoints.get("run", which="second").step == 1
        assert db.checkpoints.best("loss", "run").step == SAVED - 1
        assert db.sql("SELECT count(*) AS n FROM history.tensors").to_pylist() == [{"n": 3 * (SAVED + 1)}]
    if weights:
        (base,) = db.weights.list_weights(name="base")
        (delta,) = db.weights.list_deltas(base.hash)
        assert same(db.weights.load(base.hash), weight(0))
        assert same(db.weights.load_delta(delta.hash), weight(3))


def test_every_format_has_a_file() -> None:
    assert list(range(1, len(STEPS) + 1)) == FORMATS, "commit a file of each new format, written by making.py"
    for path in FILES:
        assert path.stat().st_size < 150_000, f"{path.name} takes too much of the repository"


def test_an_old_database_says_so_to_who_may_not_upgrade_it_and_is_not_touched(old: Path) -> None:
    before, present = digests(old), format_of(old) == len(STEPS)
    refusal = pytest.raises(FormatError, match="open it once for writing")
    with contextlib.nullcontext() if present else refusal, TensorStorage(old, read_only=True) as db:
        assert_records(db)
    assert digests(old) == before


def test_an_old_database_is_upgraded_and_holds_what_it_held(old: Path) -> None:
    number = format_of(old)
    with TensorStorage(old) as db:
        assert_records(db)
        assert_history(db, checkpoints=number >= 2, weights=number >= 3)
        assert db.verify().ok
    assert format_of(old) == len(STEPS)
    with TensorStorage(old, read_only=True) as db:
        assert_records(db)


def test_an_upgraded_database_takes_everything_that_a_new_one_does(old: Path) -> None:
    number = format_of(old)
    with TensorStorage(old) as db:
        for name, content in records().items():
            for position, key in enumerate(content):
                if position % 2:
                    db.delete_tensor(name, key)
                else:
                    db.update_tensor_metadata(name, key, {"i": position, "fresh": "x"}, merge=True)
            again = db.insert(name, torch.ones(6, 5), {"i": -1, "fresh": "y"})
            assert db.query(name, "metadata.fresh = 'y'")[0].id == again
        db.checkpoints.save("run", state(9), step=9, rng=False)
        assert same(db.checkpoints.load("run", step=9)["model"]["w"], state(9)["w"])
        if number >= 2:
            db.checkpoints.prune("run", keep_last=1)
            assert [each.step for each in db.checkpoints.list("run")] == [1, 9], "what has a tag stays"
        for name in list(records()):
            db.delete_dataset(name)
        for run in db.checkpoints.runs():
            db.checkpoints.delete_run(run)
        db.maintenance.compact(min_dead=0)
        fill(db)
        assert_records(db)
        assert_history(db, checkpoints=True, weights=True)
        db.maintenance.compact(min_dead=0)
        assert_records(db)
        assert db.verify().ok


def test_an_upgraded_database_has_the_tables_and_views_of_a_new_one(old: Path, tmp_path: Path) -> None:
    def layout(folder: Path) -> dict[str, object]:
        with TensorStorage(folder) as db:
            for name in db.list_datasets():
                db.delete_dataset(name)
            columns = db.sql(
                "SELECT schema_name, table_name, column_name, data_type FROM duckdb_columns() "
                "WHERE schema_name IN ('tensordb', 'history') ORDER BY ALL"
            ).to_pylist()
            views = db.sql("SELECT view_name, sql FROM duckdb_views() WHERE schema_name = 'history' ORDER BY ALL")
        return {"columns": columns, "views": views.to_pylist()}

    assert layout(old) == layout(tmp_path / "new")


@pytest.mark.parametrize("value", ["999", "-1", "newest", ""])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_database_of_an_unknown_format_is_refused_and_not_touched(
    tmp_path: Path, value: str, read_only: bool
) -> None:
    folder = tmp_path / "db"
    with TensorStorage(folder) as db:
        db.create_dataset("d")
        db.insert("d", torch.ones(30_000))
        db.maintenance.compact()
    with duckdb.connect(str(folder / "catalog.duckdb")) as con:
        con.execute("UPDATE tensordb.info SET value = ? WHERE name = 'format'", [value])
    before = digests(folder)
    for _ in range(2):
        with pytest.raises(FormatError, match=value or "not a number"):
            TensorStorage(folder, read_only=read_only).list_datasets()
    assert digests(folder) == before


def test_an_upgrade_that_fails_leaves_the_old_database_as_it_was(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number, copy = format_of(old), old.parent / "copy"
    shutil.copytree(old, copy)

    def breaks(con: duckdb.DuckDBPyConnection) -> None:
        con.execute("CREATE TABLE tensordb.half (a INTEGER)")
        raise RuntimeError("the machine is on fire")

    with monkeypatch.context() as patch:
        patch.setattr("tensordb.catalog.schema.STEPS", [*STEPS, breaks])
        with pytest.raises(RuntimeError, match="on fire"):
            TensorStorage(copy).list_datasets()
    assert format_of(copy) == number
    with TensorStorage(copy) as db:
        assert_records(db)
