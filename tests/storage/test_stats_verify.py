"""get_compression_stats and verify: honest totals, and every byte read back."""

from pathlib import Path

import pytest
import torch

from tensordb import DatasetNotFoundError, TensorStorage


def fill(db: TensorStorage) -> int:
    """Insert records of many kinds; return their raw bytes."""
    raw = 0
    for name, preset in (("a", "lossless"), ("b", "int8_only"), ("c", "none")):
        db.create_dataset(name, compression_preset=preset)
        for tensors in (
            torch.randn(1, 10),
            torch.randn(1, 70_000),
            torch.randn(300, 64),
            torch.arange(40).reshape(2, 20),
        ):
            db.insert_many(name, tensors)
            raw += tensors.nbytes
    return raw


def test_totals_add_up_over_shares_datasets_and_records(db: TensorStorage) -> None:
    raw = fill(db)
    total = db.get_compression_stats()
    parts = [db.get_compression_stats(name) for name in db.list_datasets()]
    assert total.original_nbytes == raw == sum(part.original_nbytes for part in parts)
    assert total.records == 3 * 304 == sum(share.records for share in total.shares)
    assert total.stored_nbytes == sum(share.stored_nbytes for share in total.shares)
    assert total.stored_nbytes <= sum(part.stored_nbytes for part in parts), "equal tensors are shared"
    assert total.ratio == pytest.approx(total.original_nbytes / total.stored_nbytes)
    for name, part in zip("abc", parts, strict=True):
        records = db.get_dataset_with_metadata(name)
        assert sum(record.encoding.original_nbytes for record in records) == part.original_nbytes
        assert part.stored_nbytes <= sum(record.encoding.stored_nbytes for record in records) < part.stored_nbytes + 400
        errors = [record.encoding.error for record in records]
        assert part.worst_error.relative_l2 == max(error.relative_l2 for error in errors)
        assert part.worst_error.max_abs == max(error.max_abs for error in errors)
    quantizations = {share.quantization for share in total.shares}
    assert quantizations == {"none", "int8"}
    assert 0 < total.worst_error.relative_l2 < 0.05
    assert parts[0].worst_error.relative_l2 == 0


def test_totals_count_what_is_in_the_files(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "db") as db:
        fill(db)
        stored = db.get_compression_stats().stored_nbytes
        tables = [f"SELECT payload FROM tensordb.records_{number}" for number in range(1, len(db.list_datasets()) + 1)]
        total = f"SELECT coalesce(sum(octet_length(payload)), 0) AS n FROM ({' UNION ALL '.join(tables)})"
        inline = db.sql(total).column("n")[0].as_py()
        objects = db.get_compression_stats().objects
    in_files = sum(path.stat().st_size for path in (tmp_path / "db" / "segments").iterdir())
    assert 0 <= in_files + inline - stored <= 64 * objects + 4096, "alignment and the head of the file"


def test_totals_follow_deletes_and_sharing(data: TensorStorage) -> None:
    assert (data.get_compression_stats().records, data.get_compression_stats().ratio) == (0, 1.0)
    data.set_compression_preset("none")
    tensor = torch.randn(5000)
    ids = [data.insert("data", tensor) for _ in range(4)]
    stats = data.get_compression_stats("data")
    assert (stats.records, stats.objects, stats.original_nbytes) == (4, 1, 80_000)
    assert stats.ratio == pytest.approx(4, rel=0.02)
    for record_id in ids[1:]:
        data.delete_tensor("data", record_id)
    assert data.get_compression_stats("data").ratio < 1, "a raw payload has a header"
    data.delete_tensor("data", ids[0])
    assert data.get_compression_stats("data").stored_nbytes == 0


def test_totals_as_a_dict_and_html(db: TensorStorage) -> None:
    fill(db)
    stats = db.get_compression_stats("b")
    plain = stats.to_dict()
    assert plain["ratio"] == stats.ratio
    assert plain["shares"][0]["ratio"] == stats.shares[0].ratio
    assert "int8" in stats._repr_html_()
    assert "b" in repr(stats)


def test_verify_reads_every_object_of_healthy_data(db: TensorStorage) -> None:
    fill(db)
    report = db.verify()
    assert report.ok
    assert report.damaged == ()
    assert report.records == 912
    assert report.objects >= db.get_compression_stats().objects
    assert db.verify("a").records == 304
    db.create_dataset("empty")
    assert db.verify("empty").ok


def test_unknown_datasets_are_named(db: TensorStorage) -> None:
    for call in (db.verify, db.get_compression_stats):
        with pytest.raises(DatasetNotFoundError, match="'nope'"):
            call("nope")


def test_compaction_changes_nothing_that_is_read(data: TensorStorage) -> None:
    ids = [data.insert("data", torch.full((50,), float(n)), {"n": n}) for n in range(30)]
    ids += data.insert_many("data", torch.randn(5, 60_000))
    before = {record.id: (record.tensor.clone(), record.metadata) for record in data.query("data")}
    for record_id in ids[::3]:
        data.delete_tensor("data", record_id)
        del before[record_id]
    moved = data.maintenance.compact(min_dead=0.0).payloads_moved
    assert moved >= 20
    for record in data.query("data"):
        tensor, metadata = before.pop(record.id)
        assert torch.equal(record.tensor, tensor)
        assert record.metadata == metadata
    assert not before
    assert data.verify().ok
