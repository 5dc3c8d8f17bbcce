"""Damaged files: a read gives the right tensor or an IntegrityError, other records stay readable, verify finds all."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import duckdb
import pytest
import torch

from tensordb import TensorStorage
from tensordb.errors import IntegrityError

from .conftest import Sample
from .programs import made, segment_names


def broken(folder: Path, sample: Sample) -> set[str]:
    """Read everything in every way; return the ids that raised, after checking that nothing came out wrong."""
    bad = set()
    with TensorStorage(folder, read_only=True) as db:
        for key, tensor in sample.tensors.items():
            try:
                assert db.get_tensor_by_id("d", key).tensor.equal(tensor)
            except IntegrityError as error:
                bad.add(next(each for each in (key,) if each in str(error)))
        good = [key for key in sample.tensors if key not in bad]
        for record in db.get_many("d", good):
            assert record.tensor.equal(sample.tensors[record.id])
        if bad:
            with pytest.raises(IntegrityError):
                db.get_dataset("d")
        report = db.verify()
        # Bytes that no read needs, such as padding, may be damaged without harm: verify may say so, and must not miss.
        assert bad <= {each.record_id for each in report.damaged}
        assert len(report.damaged) == len({each.record_id for each in report.damaged})
    return bad


def flip(file: Path, position: int, bit: int = 0) -> None:
    with file.open("r+b") as stream:
        stream.seek(position)
        (byte,) = stream.read(1)
        stream.seek(position)
        stream.write(bytes([byte ^ (1 << bit)]))


def places(folder: Path) -> list[tuple[str, int, int]]:
    """Return file, offset and length of every payload in segments."""
    with duckdb.connect(str(folder / "catalog.duckdb"), read_only=True) as con:
        rows = con.execute("SELECT segment, position, stored_nbytes FROM tensordb.objects")
        return [(f"{segment:016x}.seg", offset, length) for segment, offset, length in rows.fetchall()]


def records_at(folder: Path, sample: Sample) -> dict[int, set[str]]:
    """Return the ids of the records whose payloads begin at each place of a segment."""
    with duckdb.connect(str(folder / "catalog.duckdb"), read_only=True) as con:
        rows = con.execute(
            "SELECT o.position FROM tensordb.records_1 r LEFT JOIN tensordb.objects o USING (object_id) ORDER BY r.seq"
        ).fetchall()
    found: dict[int, set[str]] = {}
    for key, (position,) in zip(sample.tensors, rows, strict=True):
        if position is not None:
            found.setdefault(position, set()).add(key)
    return found


def test_a_flipped_bit_anywhere_in_a_segment_never_gives_a_wrong_tensor(sample: Sample, tmp_path: Path) -> None:
    folder, rng = sample.copy(tmp_path / "db"), random.Random(3)
    payloads, records = places(folder), records_at(folder, sample)
    harmed = 0
    for number in range(4):
        chosen = payloads[number % 2 :: 2]
        flips = [
            (folder / "segments" / name, offset + rng.randrange(16, length), rng.randrange(8))
            for name, offset, length in chosen
        ]
        for file, position, bit in flips:
            flip(file, position, bit)
        bad = broken(folder, sample)
        hit = [records[offset] for _, offset, _ in chosen]
        assert bad <= set[str]().union(*hit), "records of other objects were hit"
        harmed += sum(bool(bad & each) for each in hit)
        for file, position, bit in flips:
            flip(file, position, bit)
    assert harmed > 12
    assert broken(folder, sample) == set()


@pytest.mark.parametrize("first", [0, 8])
def test_a_flipped_bit_at_the_very_start_of_a_payload_is_an_integrity_error(
    sample: Sample, tmp_path: Path, first: int
) -> None:
    folder = sample.copy(tmp_path / "db")
    payloads, records, hit = places(folder), records_at(folder, sample), set[str]()
    for position, (name, offset, _) in zip(range(first, first + 8), payloads, strict=False):  # each in another one
        flip(folder / "segments" / name, offset + position, position % 8)
        hit |= records[offset]
    assert len(payloads) > 8
    assert broken(folder, sample) == hit


def test_damage_to_the_header_of_a_segment_file_never_gives_a_wrong_tensor(sample: Sample, tmp_path: Path) -> None:
    folder = sample.copy(tmp_path / "db")
    (name,) = segment_names(folder)
    for position in (0, 21, 63):
        flip(folder / "segments" / name, position)
        assert broken(folder, sample) == set(), "the header is there twice"
        flip(folder / "segments" / name, 64 + position)
        assert broken(folder, sample) == set(sample.tensors) - set(sample.inline)
        flip(folder / "segments" / name, position)
        flip(folder / "segments" / name, 64 + position)


def test_verify_lists_exactly_the_damaged_records(sample: Sample, tmp_path: Path) -> None:
    folder = sample.copy(tmp_path / "db")
    found = places(folder)
    for name, offset, length in found[1::3]:
        for position in range(offset + length // 3, offset + length // 3 + 64):
            flip(folder / "segments" / name, position)
    bad = broken(folder, sample)
    assert bad
    with TensorStorage(folder, read_only=True) as db:
        report = db.verify()
    assert not report.ok
    assert report.records == len(sample.tensors)
    assert sorted(each.record_id for each in report.damaged) == sorted(bad)
    assert all(each.record_id in each.reason and "segment" in each.reason for each in report.damaged)


def test_each_of_several_that_share_damage_is_named_in_its_own_reason(tmp_path: Path) -> None:
    tensor = torch.randn(9_000, generator=torch.Generator().manual_seed(1))
    with TensorStorage(tmp_path) as db:
        db.create_dataset("d")
        db.insert_many("d", [tensor, tensor], record_ids=["a", "b"])
        db.checkpoints.save("run", {"w": tensor + 1, "v": (tensor + 1).clone()}, step=3, rng=False)
    (file,) = (tmp_path / "segments").iterdir()
    content = bytearray(file.read_bytes())
    content[200::1000] = bytes(each ^ 1 for each in content[200::1000])
    file.write_bytes(content)
    with TensorStorage(tmp_path) as db:
        report = db.verify()
        assert {each.record_id for each in report.damaged} == {"a", "b"}
        assert all(each.reason.startswith(f"record {each.record_id!r} of dataset 'd'") for each in report.damaged)
        assert {each.name for each in report.damaged_tensors} == {"model.w", "model.v"}
        assert all(each.reason.startswith(f"tensor {each.name!r} of run 'run'") for each in report.damaged_tensors)


def test_a_truncated_segment_costs_only_what_was_behind_the_cut(sample: Sample, tmp_path: Path) -> None:
    folder = sample.copy(tmp_path / "db")
    (name,) = segment_names(folder)
    found = sorted(places(folder), key=lambda place: -place[1])[::-4][::-1]
    previous: set[str] = set()
    for _, offset, length in found:
        with (folder / "segments" / name).open("r+b") as stream:
            stream.truncate(offset + length - 1)
        bad = broken(folder, sample)
        assert previous < bad
        previous = bad
    assert previous == set(sample.tensors) - set(sample.inline)


def test_a_segment_cut_short_under_an_open_storage_is_an_error_and_not_a_crash(sample: Sample, tmp_path: Path) -> None:
    folder = sample.copy(tmp_path / "db")
    (name,) = segment_names(folder)
    with TensorStorage(folder) as db:
        whole = [key for key in sample.tensors if key not in sample.inline]
        db.get_many("d", whole)  # mapped and remembered now
        with (folder / "segments" / name).open("r+b") as stream:
            stream.truncate(4096)
        for key in whole:
            with pytest.raises(IntegrityError):
                db.get_tensor_by_id("d", key)
        assert len(db.verify().damaged) == len(whole)
        kept = db.insert("d", made(99, 30_000))
        assert db.get_tensor_by_id("d", kept).tensor.equal(made(99, 30_000))


def test_a_missing_segment_leaves_the_inline_records_readable(sample: Sample, tmp_path: Path) -> None:
    folder = sample.copy(tmp_path / "db")
    (name,) = segment_names(folder)
    (folder / "segments" / name).unlink()
    assert broken(folder, sample) == set(sample.tensors) - set(sample.inline)
    (folder / "segments").rmdir()
    assert broken(folder, sample) == set(sample.tensors) - set(sample.inline)
    with TensorStorage(folder) as db:
        kept = db.insert("d", made(99, 30_000))
        db.maintenance.gc()
        assert db.get_tensor_by_id("d", kept).tensor.equal(made(99, 30_000))


def test_swapped_and_foreign_segments_are_errors_and_never_other_tensors(sample: Sample, tmp_path: Path) -> None:
    folder = sample.copy(tmp_path / "db")
    with TensorStorage(folder) as holder, TensorStorage(folder) as db:  # each appends to a segment of its own
        holder.insert("d", made(5, 9_001))
        keys = [db.insert("d", made(size + 1, size)) for size in (9_000, 20_000)]
    first, second = (folder / "segments" / name for name in segment_names(folder))
    spare = tmp_path / "spare"
    first.rename(spare)
    second.rename(first)
    spare.rename(second)
    assert broken(folder, sample) == set(sample.tensors) - set(sample.inline)
    with TensorStorage(folder) as db:
        for key in keys:
            with pytest.raises(IntegrityError):
                db.get_tensor_by_id("d", key)
    foreign = tmp_path / "foreign"
    with TensorStorage(foreign) as db:
        db.create_dataset("d")
        db.insert("d", made(1, 9_000))
    shutil.copy(foreign / "segments" / segment_names(foreign)[0], first)
    assert broken(folder, sample) == set(sample.tensors) - set(sample.inline)


def test_an_inline_payload_that_was_changed_is_an_integrity_error(sample: Sample, tmp_path: Path) -> None:
    folder, rng = sample.copy(tmp_path / "db"), random.Random(5)
    with duckdb.connect(str(folder / "catalog.duckdb")) as con:
        rows = con.execute("SELECT seq, payload FROM tensordb.records_1 WHERE payload IS NOT NULL").fetchall()
        for seq, payload in rows:
            position = rng.randrange(4, len(payload))
            changed = bytearray(payload)
            changed[position] ^= 1 << rng.randrange(8)
            con.execute("UPDATE tensordb.records_1 SET payload = ? WHERE seq = ?", [bytes(changed), seq])
    bad = broken(folder, sample)
    assert bad <= set(sample.inline)
    assert len(bad) >= len(sample.inline) - 2, "only padding may be changed without harm"


@pytest.mark.parametrize("damage", ["NULL", "''::BLOB", "payload[1:20]", "payload || payload"])
def test_an_inline_payload_that_is_gone_or_of_another_length_is_an_integrity_error(
    sample: Sample, tmp_path: Path, damage: str
) -> None:
    folder = sample.copy(tmp_path / "db")
    with duckdb.connect(str(folder / "catalog.duckdb")) as con:
        con.execute(f"UPDATE tensordb.records_1 SET payload = {damage} WHERE payload IS NOT NULL")
    assert broken(folder, sample) == set(sample.inline)


def test_one_damaged_inline_payload_spoils_nothing_but_totals_and_those_name_it(sample: Sample, tmp_path: Path) -> None:
    folder, bad = sample.copy(tmp_path / "db"), sample.inline[3]
    with duckdb.connect(str(folder / "catalog.duckdb")) as con:
        rows = con.execute("SELECT seq FROM tensordb.records_1 WHERE payload IS NOT NULL ORDER BY seq").fetchall()
        con.execute("UPDATE tensordb.records_1 SET payload = payload[1:9] WHERE seq = ?", [rows[3][0]])
    with TensorStorage(folder) as db:
        with pytest.raises(IntegrityError, match=bad):
            db.get_compression_stats()
        for _ in range(2):
            with pytest.raises(IntegrityError, match=bad):
                db.maintenance.compact()
            held = db.sql("SELECT seq FROM tensordb.records_1 WHERE payload IS NOT NULL")
            assert held.num_rows == 1, "the sound ones were moved"
        assert [record.record_id for record in db.verify().damaged] == [bad]
        db.delete_tensor("d", bad)
        db.maintenance.compact()
        assert db.verify().ok
        assert len(db.get_many("d", [key for key in sample.tensors if key != bad])) == len(sample.tensors) - 1


def test_an_object_that_vanished_from_the_catalog_is_an_integrity_error(sample: Sample, tmp_path: Path) -> None:
    folder = sample.copy(tmp_path / "db")
    with duckdb.connect(str(folder / "catalog.duckdb")) as con:
        con.execute("DELETE FROM tensordb.objects")
    assert broken(folder, sample) == set(sample.tensors) - set(sample.inline)
