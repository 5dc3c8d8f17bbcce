"""What others do while compact is under way is respected, and what is damaged stays while all else goes on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tensordb import IntegrityError, TensorStorage
from tensordb.engine.paging import Gathering

from .programs import finish, line, made, running

OTHER = """
for asked in sys.stdin:
    folder, ids = json.loads(asked)
    db = TensorStorage(folder)
    for key in ids[:10]:
        db.delete_tensor("d", key)
    for key in ids[10:20]:
        db.update_tensor_metadata("d", key, {"changed": True})
    new = [db.insert("d", made(900 + seed, 50)) for seed in range(5)] + [db.insert("d", made(30, 50))]
    db.close()
    say(json.dumps(new))
"""


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """Another process, which changes each database that it is told of; starting one takes seconds."""
    with running(OTHER, tmp_path_factory.mktemp("unused")) as process:
        yield process
        finish(process)


@pytest.mark.parametrize("inline", [True, False])
def test_what_another_process_deletes_changes_and_inserts_before_the_commit_is_respected(
    other: subprocess.Popen[str], tmp_path: Path, inline: bool
) -> None:
    folder = tmp_path / "db"
    with TensorStorage(folder) as db:
        db.create_dataset("d")
        if inline:
            with db.transaction():
                ids = [db.insert("d", made(seed, 50)) for seed in range(40)]
        else:
            ids = [
                key for seed in range(0, 40, 4) for key in db.insert_many("d", [made(seed + n, 50) for n in range(4)])
            ]
        with db._db.catalog.read() as con:
            row = db._db.catalog.known.dataset(con, "d")
            pages = {} if inline else dict(con.execute("SELECT object_id, 0 FROM tensordb.objects").fetchall())
        gathering = Gathering(db._db, row, pages, config=None, shared=set())
        for found in gathering._windows():
            gathering._take_all(found)
        assert other.stdin is not None
        other.stdin.write(json.dumps([str(folder), ids]) + "\n")
        other.stdin.flush()
        new = json.loads(line(other))
        gathering._finish()
        gathering._commit()
        assert gathering.outcome.moved in (29, 30)  # one has come to share its object, where it lay inline
        found = {record.id: record for record in db.scan("d")}
        assert set(found) == {*ids[10:], *new}
        assert all(found[key].tensor.equal(made(seed, 50)) for seed, key in enumerate(ids) if seed >= 10)
        assert all(found[key].metadata == {"changed": True} for key in ids[10:20])
        assert db.verify().ok
        db.maintenance.compact(min_dead=0)
        assert db.verify().ok
        db.delete_where("d", "true")
        assert db.sql("SELECT count(*) AS n FROM tensordb.objects").to_pylist() == [{"n": 0}]


def test_a_dataset_that_is_deleted_and_created_anew_meanwhile_is_left_alone(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "db") as db:
        db.create_dataset("d")
        for seed in range(5):
            db.insert("d", made(seed, 50))
        with db._db.catalog.read() as con:
            row = db._db.catalog.known.dataset(con, "d")
        gathering = Gathering(db._db, row, {}, config=None, shared=set())
        for found in gathering._windows():
            gathering._take_all(found)
        db.delete_dataset("d")
        db.create_dataset("d")
        kept = [db.insert("d", made(seed, 50)) for seed in range(5)]
        assert gathering.run().moved == 0
        assert [record.id for record in db.scan("d")] == kept
        assert db.verify().ok


@pytest.mark.parametrize("preset", [None, "fast"])
def test_a_damaged_record_stays_where_it_is_while_all_others_go_on(tmp_path: Path, preset: str | None) -> None:
    folder = tmp_path / "db"
    with TensorStorage(folder, compression_preset="none") as db:
        db.create_dataset("d")
        whole = [db.insert("d", torch.full((5000,), float(seed))) for seed in range(20)]
        paged = db.insert_many("d", torch.arange(200.0).repeat_interleave(500).reshape(200, 500))
        for key in paged[:150]:
            db.delete_tensor("d", key)
    for file in (folder / "segments").iterdir():
        content = bytearray(file.read_bytes())
        for value in (7.0, 180.0):
            content[content.index(torch.full((100,), value).numpy().tobytes()) + 50] ^= 4
        file.write_bytes(content)
    bad = {whole[7], paged[180]}
    with TensorStorage(folder, compression_preset="none") as db:
        for _ in range(2):
            with pytest.raises(IntegrityError, match="stay where they are"):
                db.maintenance.compact(preset=preset)
            found = {each.record_id for each in db.verify().damaged}
            assert bad <= found
            assert len(found) <= 64, "rows that share a damaged frame, and no others"
        sound = [key for key in [*whole, *paged[150:]] if key not in found]
        assert len(db.get_many("d", sound)) == len(sound)
        for key in found:
            db.delete_tensor("d", key)
        db.maintenance.compact(preset=preset)
        assert db.verify().ok
