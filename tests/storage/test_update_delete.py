"""update_tensor_metadata, delete_tensor, delete_where, delete_dataset."""

import datetime as dt
import math
import time
from itertools import chain

import duckdb
import pytest
import torch

from tensordb import (
    DatasetNotFoundError,
    InvalidInputError,
    InvalidQueryError,
    SchemaValidationError,
    TensorNotFoundError,
    TensorStorage,
)

from .tensors import same


def stored(db: TensorStorage) -> list[object]:
    """Every payload: those that records hold, and where the others are."""
    held = "SELECT table_name FROM duckdb_tables() WHERE table_name LIKE 'records_%'"
    payloads = [
        db.sql(f"SELECT object_id, payload FROM tensordb.{table} WHERE payload IS NOT NULL ORDER BY seq").to_pylist()
        for table in db.sql(held).column(0).to_pylist()
    ]
    return [*chain.from_iterable(payloads), *db.sql("SELECT * FROM tensordb.objects ORDER BY object_id").to_pylist()]


def test_replacing_metadata(runs: TensorStorage) -> None:
    runs.update_tensor_metadata("data", "r3", {"loss": 9, "new": {"x": [1]}})
    assert runs.get_tensor_by_id("data", "r3").metadata == {"loss": 9, "new": {"x": [1]}}
    assert [record.id for record in runs.query("data", "metadata.loss > 5")] == ["r3"]
    assert [record.id for record in runs.query("data", "metadata.step IS NULL")] == ["r3"]
    for nothing in ({}, None):
        runs.update_tensor_metadata("data", "r3", nothing)
        assert runs.get_tensor_by_id("data", "r3").metadata == {}


def test_merging_metadata(runs: TensorStorage) -> None:
    runs.update_tensor_metadata("data", "r3", {"loss": None, "new": 1}, merge=True)
    assert runs.get_tensor_by_id("data", "r3").metadata == {"step": 3, "loss": None, "tag": "odd", "new": 1}
    runs.update_tensor_metadata("data", "r3", {}, merge=True)
    assert runs.get_tensor_by_id("data", "r3").metadata["new"] == 1
    with pytest.raises(InvalidInputError, match="merge"):
        runs.update_tensor_metadata("data", "r3", None, merge=True)


def test_an_update_never_touches_the_payload(data: TensorStorage) -> None:
    small, large = torch.randn(100), torch.randn(100_000)
    ids = [data.insert("data", small), data.insert("data", large), *data.insert_many("data", torch.randn(5, 9))]
    before, tensors = stored(data), data.get_dataset("data")
    segments = data.sql("SELECT segment, position FROM tensordb.objects").to_pylist()
    for record_id in ids:
        data.update_tensor_metadata("data", record_id, {"long": "x" * 3000})
        data.update_tensor_metadata("data", record_id, {"n": 1.5}, merge=True)
    assert stored(data) == before
    assert len(before) == 3
    assert data.sql("SELECT segment, position FROM tensordb.objects").to_pylist() == segments
    assert all(same(left, right) for left, right in zip(data.get_dataset("data"), tensors, strict=True))


def test_fields_widen_in_place_and_old_records_return_what_was_put_in(data: TensorStorage) -> None:
    zone = dt.timezone(dt.timedelta(hours=-7))
    values = [
        1,
        1.0,
        True,
        None,
        ...,
        math.nan,
        2**70,
        -0.0,
        "1",
        dt.datetime(2024, 1, 1, 5, tzinfo=zone),
        dt.date(2024, 1, 1),
        [1, 2.5, None, "x"],
        {"a": {"b": 1}},
        {"a": {"b": 1.0, "c": []}},
        [],
        {},
        "",
    ]
    ids = [data.insert("data", torch.zeros(1), {} if value is ... else {"v": value}) for value in values]
    data.update_tensor_metadata("data", ids[0], {"v": 1, "w": 2})
    for record_id, value in zip(ids, values, strict=True):
        metadata = data.get_tensor_by_id("data", record_id).metadata
        if value is ...:
            assert metadata == {}
        elif isinstance(value, float) and math.isnan(value):
            assert math.isnan(metadata["v"])
        else:
            assert repr(metadata["v"]) == repr(value)
    assert data.get_tensor_by_id("data", ids[9]).metadata["v"].utcoffset() == dt.timedelta(hours=-7)


def test_unknown_records_and_bad_metadata_change_nothing(runs: TensorStorage) -> None:
    with pytest.raises(TensorNotFoundError, match="'nope'"):
        runs.update_tensor_metadata("data", "nope", {})
    with pytest.raises(DatasetNotFoundError, match="'other'"):
        runs.update_tensor_metadata("other", "r1", {})
    with pytest.raises(InvalidInputError, match=r"metadata\.a\[0\]"):
        runs.update_tensor_metadata("data", "r1", {"a": [object()]})
    runs.create_dataset("strict", {"metadata": {"label": "int"}})
    record_id = runs.insert("strict", torch.zeros(1), {"label": 1})
    for metadata, merge in (({"label": "x"}, True), ({"other": 1}, False), (None, False)):
        with pytest.raises(SchemaValidationError, match=r"metadata\.label"):
            runs.update_tensor_metadata("strict", record_id, metadata, merge=merge)
    runs.update_tensor_metadata("strict", record_id, {"other": 1}, merge=True)
    assert runs.get_tensor_by_id("strict", record_id).metadata == {"label": 1, "other": 1}
    assert runs.get_tensor_by_id("data", "r1").metadata["step"] == 1


def test_delete_tensor(runs: TensorStorage) -> None:
    runs.delete_tensor("data", "r3")
    with pytest.raises(TensorNotFoundError, match="'r3'"):
        runs.get_tensor_by_id("data", "r3")
    with pytest.raises(TensorNotFoundError, match="'r3'"):
        runs.delete_tensor("data", "r3")
    with pytest.raises(TensorNotFoundError):
        runs.get_many("data", ["r1", "r3"])
    assert runs.count("data") == 9
    assert runs.insert("data", torch.ones(1), record_id="r3") == "r3"
    assert [record.id for record in runs.query("data")][-1] == "r3", "a new record, at the end"


def test_delete_where_returns_how_many_there_were(runs: TensorStorage) -> None:
    assert runs.delete_where("data", "metadata.step < ?", params=[3]) == 3
    assert runs.delete_where("data", "metadata.step < 3") == 0
    assert runs.count("data") == 7
    with pytest.raises(InvalidQueryError, match="nope"):
        runs.delete_where("data", "metadata.nope = 1")
    for where in (None, "", lambda tensor, metadata: True):
        with pytest.raises(InvalidInputError):
            runs.delete_where("data", where)  # type: ignore[arg-type]
    assert runs.delete_where("data", "true") == 7
    assert stored(runs) == []


def test_deleting_a_dataset_leaves_the_others_and_shared_tensors(runs: TensorStorage) -> None:
    runs.create_dataset("other")
    shared = runs.insert("other", torch.full((4,), 3.0))
    runs.delete_dataset("data")
    assert runs.list_datasets() == ["other"]
    assert not runs.dataset_exists("data")
    for call in (runs.query, runs.count, runs.delete_dataset, runs.get_dataset):
        with pytest.raises(DatasetNotFoundError, match="'data'"):
            call("data")
    assert runs.get_tensor_by_id("other", shared).tensor.tolist() == [3.0] * 4
    assert len(stored(runs)) == 1
    with pytest.raises(InvalidQueryError):
        runs.sql("SELECT * FROM data")
    runs.create_dataset("data")
    assert runs.count("data") == 0


def test_deleted_payloads_give_their_space_back(tmp_path) -> None:
    folder = tmp_path / "db"
    with TensorStorage(folder, compression_preset="none") as db:
        db.create_dataset("data")
        ids = [db.insert("data", torch.randn(250_000)) for _ in range(6)]
        kept = db.get_tensor_by_id("data", ids[5]).tensor
        for record_id in ids[:5]:
            db.delete_tensor("data", record_id)
        db.maintenance.compact()
        assert same(db.get_tensor_by_id("data", ids[5]).tensor, kept)
    with TensorStorage(folder) as db:
        db.maintenance.gc()
        assert same(db.get_tensor_by_id("data", ids[5]).tensor, kept)
    used = sum(path.stat().st_size for path in (folder / "segments").iterdir())
    assert used < 1_200_000


def test_the_id_of_a_deleted_record_never_comes_back_though_the_clock_does(tmp_path, monkeypatch) -> None:
    now = time.time_ns()
    with TensorStorage(tmp_path) as db:
        db.create_dataset("data")
        gone = [db.insert("data", torch.ones(3)) for _ in range(3)]
        monkeypatch.setattr(time, "time_ns", lambda: now - 10**12)
        for each in reversed(gone):
            db.delete_tensor("data", each)
    with TensorStorage(tmp_path) as db:  # another process remembers nothing
        gone.append(db.insert("data", torch.zeros(3)))
        assert db.delete_where("data", "true") == 1
        gone += db.insert_many("data", torch.zeros(2, 3))
        assert gone == sorted(set(gone))
        db.delete_dataset("data")
        db.create_dataset("data")
        assert int(db.insert("data", torch.ones(3))[2:], 16) == now // 1000 - 10**9, "another dataset begins anew"


def test_a_damaged_note_of_deleted_ids_keeps_nobody_from_inserting(tmp_path) -> None:
    for value in ("nonsense", "-1", "9" * 17, "9" * 40, None):
        with TensorStorage(tmp_path) as db:
            if not db.dataset_exists("data"):
                db.create_dataset("data")
            db.delete_tensor("data", db.insert("data", torch.ones(3)))
        with duckdb.connect(str(tmp_path / "catalog.duckdb")) as con:
            con.execute("UPDATE tensordb.info SET value = ? WHERE name LIKE 'last_record%'", [value])
        with TensorStorage(tmp_path) as db:
            assert len(db.insert("data", torch.ones(3))) == 15
