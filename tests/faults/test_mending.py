"""What was found damaged is written anew when it is stored again, for everything that shares it."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest
import torch

from tensordb import CacheConfig, TensorStorage
from tensordb.catalog import documents
from tensordb.errors import IntegrityError

WEIGHT = torch.randn(50_000, generator=torch.Generator().manual_seed(0))


def nudged(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (WEIGHT.bfloat16().float() * (1 + 1e-3 * torch.randn(WEIGHT.shape, generator=generator))).bfloat16()


def damage(folder: Path, where: str = "true") -> int:
    """Flip a bit in the middle of each of the objects that match, and return how many there are."""
    with TensorStorage(folder, read_only=True) as db:
        rows = db.sql(
            f"SELECT o.segment, o.position, o.stored_nbytes AS n FROM tensordb.objects o "
            f"LEFT JOIN tensordb.deltas d USING (object_id) WHERE {where}"
        ).to_pylist()
    for row in rows:
        path = folder / "segments" / f"{row['segment']:016x}.seg"
        data = bytearray(path.read_bytes())
        data[row["position"] + row["n"] // 2] ^= 1
        path.write_bytes(data)
    return len(rows)


def count(db: TensorStorage, table: str) -> int:
    return int(db.sql(f"SELECT count(*) AS n FROM tensordb.{table}").to_pylist()[0]["n"])


def test_saving_the_same_state_again_mends_every_checkpoint_that_shares_it(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db:
        db.checkpoints.save("run", {"w": WEIGHT}, step=0, rng=False)
        db.checkpoints.save("other", {"same": WEIGHT}, rng=False)
    assert damage(tmp_path) == 1
    with TensorStorage(tmp_path) as db:
        assert len(db.verify().damaged_tensors) == 2
        saved = db.checkpoints.save("run", {"w": WEIGHT}, step=1, rng=False)
        assert saved.added_nbytes > 100_000
        for found in (("run", 0), ("run", 1), ("other", None)):
            (tensor,) = db.checkpoints.load(found[0], step=found[1])["model"].values()
            assert torch.equal(tensor, WEIGHT)
        assert (report := db.verify()).ok, (report.damaged_catalog, report.damaged_segments)
        assert db.checkpoints.save("run", {"w": WEIGHT}, step=2, rng=False).added_nbytes < 1000
        assert count(db, "objects") == 1
        db.maintenance.compact(min_dead=0)
        assert torch.equal(db.checkpoints.load("other")["model"]["same"], WEIGHT)
        for run in ("run", "other"):
            db.checkpoints.delete_run(run)
        assert count(db, "objects") == 0


def test_what_was_not_looked_at_is_shared_as_before(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db:
        db.checkpoints.save("run", {"w": WEIGHT}, rng=False)
    damage(tmp_path)
    with TensorStorage(tmp_path, read_only=True) as db:
        assert not db.verify().ok  # which may change nothing
    with TensorStorage(tmp_path) as db:
        assert db.checkpoints.save("run", {"w": WEIGHT}, rng=False).added_nbytes < 1000
        with pytest.raises(IntegrityError):
            db.checkpoints.load("run")


def test_another_preset_mends_too(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db:
        db.checkpoints.save("run", {"w": WEIGHT}, step=0, rng=False)
    damage(tmp_path)
    with TensorStorage(tmp_path) as db:
        assert not db.maintenance.verify_checkpoints("run").ok
        db.checkpoints.save("run", {"w": WEIGHT}, step=1, rng=False, preset="none")
        assert torch.equal(db.checkpoints.load("run", step=0)["model"]["w"], WEIGHT)
        assert (report := db.verify()).ok, (report.damaged_catalog, report.damaged_segments)
        row = db.sql("SELECT DISTINCT compression, stored_nbytes FROM history.tensors").to_pylist()
        assert [each["compression"] for each in row] == ["none"]


def test_a_base_that_only_differences_need_is_mended_for_them(tmp_path: Path) -> None:
    states = [WEIGHT.bfloat16(), nudged(1), nudged(2)]
    with TensorStorage(tmp_path) as db:
        for step, state in enumerate(states):
            db.checkpoints.save("run", {"w": state}, step=step, rng=False)
        assert count(db, "deltas") == 2
        db.checkpoints.delete("run", step=0)
    assert damage(tmp_path, "d.object_id IS NULL") == 1
    with TensorStorage(tmp_path) as db:
        assert len(db.verify().damaged_tensors) == 2
        db.checkpoints.save("again", {"w": states[0]}, rng=False)
        for step in (1, 2):
            assert torch.equal(db.checkpoints.load("run", step=step)["model"]["w"], states[step])
        assert (report := db.verify()).ok, (report.damaged_catalog, report.damaged_segments)
        assert db.checkpoints.save("run", {"w": states[1]}, step=3, rng=False).added_nbytes < 1000


def test_a_damaged_difference_is_stored_by_itself_and_lets_its_base_go(tmp_path: Path) -> None:
    states = [WEIGHT.bfloat16(), nudged(1)]
    with TensorStorage(tmp_path) as db:
        for step, state in enumerate(states):
            db.checkpoints.save("run", {"w": state}, step=step, rng=False)
    assert damage(tmp_path, "d.object_id IS NOT NULL") == 1
    with TensorStorage(tmp_path) as db:
        assert [each.step for each in db.verify().damaged_tensors] == [1]
        db.checkpoints.save("again", {"w": states[1]}, rng=False)
        assert torch.equal(db.checkpoints.load("run", step=1)["model"]["w"], states[1])
        assert (report := db.verify()).ok, (report.damaged_catalog, report.damaged_segments)
        assert count(db, "deltas") == 0
        for run in ("run", "again"):
            db.checkpoints.delete_run(run)
        assert count(db, "objects") == 0


def test_no_difference_is_taken_from_what_is_damaged(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db:
        db.checkpoints.save("run", {"w": WEIGHT.bfloat16()}, step=0, rng=False)
    damage(tmp_path)
    with TensorStorage(tmp_path) as db:
        assert not db.verify().ok
        db.checkpoints.save("run", {"w": nudged(1)}, step=1, rng=False)
        assert torch.equal(db.checkpoints.load("run")["model"]["w"], nudged(1))
        assert count(db, "deltas") == 0


def test_storing_a_weight_again_mends_it_and_keeps_its_labels(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db:
        key = db.weights.store(WEIGHT, name="w")
    damage(tmp_path)
    with TensorStorage(tmp_path) as db:
        assert not db.verify().ok
        assert db.weights.store(WEIGHT) == key
        assert torch.equal(db.weights.load(key), WEIGHT)
        assert db.weights.get_metadata(key).name == "w"
        assert (report := db.verify()).ok, (report.damaged_catalog, report.damaged_segments)
        db.weights.delete(key)
        assert count(db, "objects") == 0


@pytest.mark.parametrize("many", [False, True])
def test_inserting_an_equal_tensor_mends_the_records_that_share_it(tmp_path: Path, many: bool) -> None:
    with TensorStorage(tmp_path) as db:
        db.create_dataset("d")
        first = db.insert("d", WEIGHT)
    damage(tmp_path)
    with TensorStorage(tmp_path) as db:
        with pytest.raises(IntegrityError):
            db.get_tensor_by_id("d", first)
        assert not db.verify("d").ok
        second = db.insert_many("d", [WEIGHT])[0] if many else db.insert("d", WEIGHT)
        for each in (first, second):
            assert torch.equal(db.get_tensor_by_id("d", each).tensor, WEIGHT)
        assert (report := db.verify()).ok, (report.damaged_catalog, report.damaged_segments)
        assert count(db, "objects") == 1


@pytest.mark.parametrize("cache", [None, CacheConfig(promote_after=1), CacheConfig(promote_after=9)])
@pytest.mark.parametrize("by_another", [False, True])
def test_who_met_the_damage_reads_what_was_mended(tmp_path: Path, cache: CacheConfig | None, by_another: bool) -> None:
    with TensorStorage(tmp_path) as db:
        db.create_dataset("d")
        db.insert("d", WEIGHT, record_id="a")
        db.insert_many("d", WEIGHT.reshape(500, 100), record_ids=[f"row{i}" for i in range(500)])
    assert damage(tmp_path) == 2
    with TensorStorage(tmp_path, cache=cache) as reader, TensorStorage(tmp_path) as another:
        writer = another if by_another else reader
        assert not writer.verify().ok
        looks = (
            lambda: [reader.get_tensor_by_id("d", "a")],
            lambda: reader.get_many("d", ["a"]),
            lambda: reader.query("d", "record_id = 'a'"),
            lambda: [reader.get_tensor_by_id("d", "row250")],
            lambda: reader.query("d", "record_id LIKE 'row%'"),
        )
        for look in looks:
            with pytest.raises(IntegrityError):
                look()
        writer.insert("d", WEIGHT)
        writer.insert_many("d", WEIGHT.reshape(500, 100))
        for look in looks:
            rows = torch.cat([record.tensor.reshape(-1) for record in look()])
            assert torch.equal(rows, WEIGHT if len(rows) == len(WEIGHT) else WEIGHT[25_000:25_100])


def test_a_page_stored_again_mends_its_records(tmp_path: Path) -> None:
    rows = WEIGHT.reshape(500, 100)
    with TensorStorage(tmp_path) as db:
        db.create_dataset("d")
        ids = db.insert_many("d", rows)
    assert damage(tmp_path)
    with TensorStorage(tmp_path) as db:
        assert not db.verify().ok
        ids += db.insert_many("d", rows)
        assert torch.equal(torch.stack([each.tensor for each in db.get_many("d", ids)]), torch.cat([rows, rows]))
        assert (report := db.verify()).ok, (report.damaged_catalog, report.damaged_segments)


def test_a_rolled_back_save_leaves_the_mark(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db:
        db.checkpoints.save("run", {"w": WEIGHT}, step=0, rng=False)
    damage(tmp_path)
    with TensorStorage(tmp_path) as db:
        assert not db.verify().ok
        with pytest.raises(ZeroDivisionError), db.transaction():
            _ = db.checkpoints.save("run", {"w": WEIGHT}, step=1, rng=False).nbytes / 0
        with pytest.raises(IntegrityError):
            db.checkpoints.load("run")
        db.checkpoints.save("run", {"w": WEIGHT}, step=1, rng=False)
        assert (report := db.verify()).ok, (report.damaged_catalog, report.damaged_segments)


def test_a_segment_that_is_gone_is_mended_by_storing_what_was_in_it(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db:
        db.checkpoints.save("run", {"w": WEIGHT, "v": WEIGHT + 1}, step=0, rng=False)
    for path in (tmp_path / "segments").glob("*.seg"):
        path.unlink()
    with TensorStorage(tmp_path) as db:
        assert len(db.verify().damaged_tensors) == 2
        db.checkpoints.save("run", {"w": WEIGHT, "v": WEIGHT + 1}, step=1, rng=False)
        assert torch.equal(db.checkpoints.load("run", step=0)["model"]["v"], WEIGHT + 1)
        assert (report := db.verify()).ok, (report.damaged_catalog, report.damaged_segments)


def test_a_changed_document_in_the_catalog_is_found_by_verify_and_by_loading(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db:
        for step in range(3):
            db.checkpoints.save("run", {"w": torch.ones(2)}, state={"seen": 1000 + step}, step=step, rng=False)
        db.checkpoints.fork("run", 2, "copy")
        (row,) = db.sql("SELECT number, document FROM tensordb.checkpoints WHERE step = 1").to_pylist()
    changed = row["document"].replace((1001).to_bytes(2, "big"), (1009).to_bytes(2, "big"))
    assert changed != row["document"]
    with duckdb.connect(str(tmp_path / "catalog.duckdb")) as con:
        con.execute("UPDATE tensordb.checkpoints SET document = ? WHERE number = ?", [changed, row["number"]])
    with TensorStorage(tmp_path) as db:
        for report in (db.verify(), db.maintenance.verify_checkpoints("run")):
            assert [(each.step, each.name) for each in report.damaged_tensors] == [(1, "")]
            assert "not what was saved" in report.damaged_tensors[0].reason
        with pytest.raises(IntegrityError, match=r"step 1 of run 'run'.*not what was saved"):
            db.checkpoints.load("run", step=1)
        assert db.checkpoints.load("copy")["state"] == {"seen": 1002}
        assert db.maintenance.verify_checkpoints("copy").ok
        assert db.checkpoints.get("run", step=1).metadata == {}


def test_a_checkpoint_without_a_checksum_of_its_document_still_loads(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db:
        db.checkpoints.save("run", {"w": torch.ones(2)}, state={"seen": 1}, metrics={"loss": 1}, rng=False)
    with duckdb.connect(str(tmp_path / "catalog.duckdb")) as con:
        facts = documents.pack({"metrics": {"loss": 1}, "metadata": {}})
        con.execute("UPDATE tensordb.checkpoints SET facts = ?", [facts])
    with TensorStorage(tmp_path) as db:
        assert db.checkpoints.load("run")["state"] == {"seen": 1}
        assert (report := db.verify()).ok, (report.damaged_catalog, report.damaged_segments)


def test_sound_payloads_in_each_others_places_are_found_by_verify(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db:
        db.checkpoints.save("run", {"a": WEIGHT, "b": WEIGHT + 1}, step=0, rng=False, preset="none")
        one, other = db.sql("SELECT object_id, segment, position FROM tensordb.objects").to_pylist()
    with duckdb.connect(str(tmp_path / "catalog.duckdb")) as con:
        for there, place in ((one, other), (other, one)):
            values = [place["segment"], place["position"], there["object_id"]]
            con.execute("UPDATE tensordb.objects SET segment = ?, position = ? WHERE object_id = ?", values)
    with TensorStorage(tmp_path) as db:
        report = db.verify()
        assert [each.name for each in report.damaged_tensors] == ["model.a", "model.b"]
        assert "not what was stored" in report.damaged_tensors[0].reason
        db.checkpoints.save("run", {"a": WEIGHT, "b": WEIGHT + 1}, step=1, rng=False)
        assert torch.equal(db.checkpoints.load("run", step=0)["model"]["a"], WEIGHT)
        assert (report := db.verify()).ok, (report.damaged_catalog, report.damaged_segments)
