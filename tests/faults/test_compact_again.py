"""Compaction and collection by a process that did not write what is there."""

from pathlib import Path

import pytest
import torch

from tensordb import IntegrityError, TensorStorage


def _files(path: Path) -> list[Path]:
    return sorted((path / "segments").iterdir())


def test_compacting_after_a_reopen_moves_each_payload_once(tmp_path: Path) -> None:
    with TensorStorage(tmp_path, compression_preset="none") as db:
        db.create_dataset("d")
        tensors = [torch.full((200_000,), float(i)) for i in range(6)]
        ids = [db.insert("d", each) for each in tensors]
        for each in ids[:4]:
            db.delete_tensor("d", each)
    before = sum(file.stat().st_size for file in _files(tmp_path))
    with TensorStorage(tmp_path) as db:
        report = db.maintenance.compact()
        assert report.payloads_moved == 2
        assert sum(file.stat().st_size for file in _files(tmp_path)) < before / 2
        assert [torch.equal(r.tensor, t) for r, t in zip(db.get_many("d", ids[4:]), tensors[4:], strict=True)] == [
            True
        ] * 2
        assert db.verify().ok


def test_collecting_again_and_again_leaves_no_file_each_time(tmp_path: Path) -> None:
    with TensorStorage(tmp_path, compression_preset="none") as db:
        db.create_dataset("d")
        for i in range(5):
            db.insert("d", torch.full((50_000,), float(i)))
            db.maintenance.gc()
        assert len(_files(tmp_path)) == 1
        for _ in range(3):
            db.maintenance.compact()
            db.insert("d", torch.rand(50_000))
        assert len(_files(tmp_path)) <= 2
        assert db.verify().ok


def test_a_damaged_payload_is_not_moved(tmp_path: Path) -> None:
    with TensorStorage(tmp_path, compression_preset="none") as db:
        db.create_dataset("d")
        ids = [db.insert("d", torch.full((50_000,), float(i))) for i in range(4)]
        for each in ids[:3]:
            db.delete_tensor("d", each)
    (file,) = _files(tmp_path)
    content = bytearray(file.read_bytes())
    content[content.rindex(torch.full((1,), 3.0).numpy().tobytes() * 100) + 50] ^= 4
    file.write_bytes(content)
    with TensorStorage(tmp_path) as db:
        with pytest.raises(IntegrityError, match="stay where they are"):
            db.maintenance.compact()
        assert [each.record_id for each in db.verify().damaged] == [ids[3]]
        assert file.exists()
        db.delete_tensor("d", ids[3])
        db.maintenance.compact()
        assert not file.exists()
