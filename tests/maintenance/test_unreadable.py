"""What this installation cannot read is no damage: it is named, kept, and keeps nothing else from being looked at."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
import torch
from xxhash import xxh3_64_intdigest

from tensordb import CompressionConfig, FormatError, IntegrityError, TensorStorage, UnsupportedFormatError
from tensordb.catalog import damage
from tensordb.cli import main
from tensordb.payloads.layout import BLOCK_BYTES

Change = Callable[[bytearray], None]


def newer_version(payload: bytearray) -> None:
    payload[3] = 9


def unknown_dtype(payload: bytearray) -> None:
    payload[16] = 99


def unknown_flag(payload: bytearray) -> None:
    payload[17] |= 128


def impossible_exceptions(payload: bytearray) -> None:
    payload[17] |= 8


def forge(payload: bytes, change: Change) -> bytes:
    """Change a header, under a checksum that matches."""
    changed = bytearray(payload)
    change(changed)
    size = int.from_bytes(changed[4:8], "little")
    changed[8:16] = xxh3_64_intdigest(bytes(changed[:8] + changed[16:size])).to_bytes(8, "little")
    return bytes(changed)


def made(size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(size))


def build(folder: Path, change: Change) -> None:
    """Store something small and something large of everything; change the headers of all but the record "sound"."""
    with TensorStorage(folder) as db:
        db.create_dataset("d")
        db.insert("d", torch.arange(20.0), record_id="small")
        db.insert("d", made(9_000), record_id="large")
        db.insert_many("d", made(4_000).reshape(-1, 40), record_ids=[f"row{i}" for i in range(100)])
        db.checkpoints.save("run", {"w": made(7_000)}, rng=False)
        db.weights.store(made(8_000), name="w")
        places = db.sql("SELECT segment, position, stored_nbytes AS n FROM tensordb.objects").to_pylist()
        db.insert("d", made(5_000), record_id="sound")
    for place in places:
        path = folder / "segments" / f"{place['segment']:016x}.seg"
        data, at = path.read_bytes(), slice(place["position"], place["position"] + place["n"])
        path.write_bytes(data[: at.start] + forge(data[at], change) + data[at.stop :])
    with duckdb.connect(str(folder / "catalog.duckdb")) as con:
        ((payload,),) = con.execute("SELECT payload FROM tensordb.records_1 WHERE payload IS NOT NULL").fetchall()
        con.execute("UPDATE tensordb.records_1 SET payload = ? WHERE payload IS NOT NULL", [forge(payload, change)])


def told(*arguments: object) -> tuple[int, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([str(each) for each in arguments])
    return code, out.getvalue()


@pytest.mark.parametrize("change", [newer_version, unknown_dtype, unknown_flag])
def test_what_a_newer_release_wrote_is_named_and_neither_removed_nor_marked(tmp_path: Path, change: Change) -> None:
    build(tmp_path / "db", change)
    with TensorStorage(tmp_path / "db") as db:
        report = db.verify()
        assert not report.ok
        assert (report.damaged, report.damaged_tensors, report.damaged_weights) == ((), (), ())
        assert len(report.unreadable) == 104
        names = "\n".join(each.name for each in report.unreadable)
        assert all(name in names for name in ("'small'", "'large'", "'row99'", "'model.w' of run 'run'", "weight "))
        assert all("newer release" in each.reason for each in report.unreadable)
        with db._db.catalog.read() as con:
            assert not damage.marked(con)
        assert db.maintenance.repair(drop_checkpoints=True).unreadable == report.unreadable
        assert (db.count("d"), len(db.checkpoints.list()), len(db.weights.list_weights())) == (103, 1, 1)
        assert db.get_tensor_by_id("d", "sound").tensor.shape == (5_000,)
        with pytest.raises(UnsupportedFormatError, match="'large'"):
            db.get_tensor_by_id("d", "large")


def test_what_no_release_writes_is_damage_and_goes(tmp_path: Path) -> None:
    build(tmp_path / "db", impossible_exceptions)
    with TensorStorage(tmp_path / "db") as db:
        with pytest.raises(FormatError, match="forged"):
            db.get_tensor_by_id("d", "large")
        report = db.maintenance.repair(drop_checkpoints=True)
        assert not report.unreadable
        assert (len(report.removed_records), len(report.removed_checkpoints), len(report.removed_weights)) == (
            102,
            1,
            1,
        )
        assert [record.id for record in db.scan("d")] == ["sound"]
        assert db.verify().ok


def test_the_commands_tell_what_cannot_be_read_here_from_what_is_damaged(tmp_path: Path) -> None:
    build(tmp_path / "db", newer_version)
    code, text = told("verify", tmp_path / "db")
    assert code == 1
    assert "unreadable here: record 'large' of dataset 'd'" in text
    assert "104 unreadable here" in text
    assert "damaged" not in text
    assert len(json.loads(told("verify", tmp_path / "db", "--json")[1])["unreadable"]) == 104
    code, text = told("repair", tmp_path / "db")
    assert code == 1
    assert "unreadable here, kept: record 'large'" in text
    assert "removed" not in text
    assert len(json.loads(told("repair", tmp_path / "db", "--json")[1])["unreadable"]) == 104


def test_a_file_that_the_system_does_not_open_is_no_damage(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db:
        db.create_dataset("d")
        db.insert("d", made(9_000))
        small = db.insert("d", torch.ones(3))
        (segment,) = (tmp_path / "segments").iterdir()
        aside = segment.rename(tmp_path / "aside")
        segment.symlink_to(segment)  # which nobody can follow
        report = db.maintenance.repair()
        assert (len(report.unreadable), report.removed_records) == (1, ())
        assert torch.equal(db.get_tensor_by_id("d", small).tensor, torch.ones(3))
        segment.unlink()
        aside.rename(segment)
        assert db.verify().ok


_WITHOUT = """
import json, sys, torch
sys.modules["pcodec"] = None  # as if it were not installed
del torch.float8_e8m0fnu  # as in an older torch
from tensordb import TensorStorage
with TensorStorage(sys.argv[1]) as db:
    found = db.verify()
    report = db.maintenance.repair(drop_checkpoints=True)
    print(json.dumps({
        "unreadable": [[each.name, each.reason] for each in found.unreadable],
        "damaged": len(found.damaged) + len(found.damaged_tensors) + len(found.damaged_weights),
        "gone": len(report.removed_records) + len(report.removed_checkpoints) + len(report.removed_weights),
    }))
"""


def test_a_package_that_is_not_installed_and_a_dtype_that_torch_lacks_are_no_damage(tmp_path: Path) -> None:
    pytest.importorskip("pcodec")
    drawn = torch.randint(100, 140, (9_000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scales = drawn.view(torch.float8_e8m0fnu)
    with TensorStorage(tmp_path, compression_config=CompressionConfig("pcodec")) as db:
        db.create_dataset("d")
        db.insert("d", made(6_000), record_id="packed")
    with TensorStorage(tmp_path) as db:
        db.insert("d", scales, record_id="scales")
        db.insert("d", scales[:20], record_id="few")
        db.insert("d", torch.ones(9_000).to(torch.float8_e8m0fnu), record_id="constant")
        db.insert("d", made(6_001), record_id="plain")
        db.checkpoints.save("run", {"w": scales[:7_000]}, rng=False)
        db.weights.store(scales[:8_000])
    done = subprocess.run([sys.executable, "-c", _WITHOUT, tmp_path], capture_output=True, text=True, timeout=300)
    told = json.loads(done.stdout or done.stderr)
    assert (told["damaged"], told["gone"], len(told["unreadable"])) == (0, 0, 6)
    reasons = dict(told["unreadable"])
    assert "tensordb[archive]" in reasons["record 'packed' of dataset 'd'"]
    for name in ("scales", "few", "constant"):
        assert "newer torch" in reasons[f"record {name!r} of dataset 'd'"]
    with TensorStorage(tmp_path) as db:
        assert db.verify().ok
        assert db.count("d") == 5


def test_a_segment_of_a_newer_release_keeps_nothing_else_from_being_compacted_or_repaired(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    for size in (9_000, 9_100, 9_200):
        with TensorStorage(folder) as db:
            if not db.dataset_exists("d"):
                db.create_dataset("d")
            db.insert("d", made(size), record_id=str(size))
            db.maintenance._db.payloads.seal()  # each in a file of its own
    with TensorStorage(folder) as db:
        places = db.sql("SELECT segment FROM tensordb.objects ORDER BY raw_nbytes").column(0).to_pylist()
        newer, damaged, _ = [folder / "segments" / f"{place:016x}.seg" for place in places]
    changed = bytearray(newer.read_bytes())
    changed[8] += 1
    checksum = xxh3_64_intdigest(bytes(changed[: BLOCK_BYTES - 8])).to_bytes(8, "little")
    changed[: 2 * BLOCK_BYTES] = 2 * (changed[: BLOCK_BYTES - 8] + checksum)
    newer.write_bytes(changed)
    damaged.write_bytes(damaged.read_bytes()[:200])
    with TensorStorage(folder) as db:
        with pytest.raises(IntegrityError, match="upgrade tensordb"):
            db.maintenance.compact()
        assert db.sql("SELECT count(DISTINCT segment) AS n FROM tensordb.objects").to_pylist() == [{"n": 3}]
        report = db.maintenance.repair()
        assert [each.record_id for each in report.removed_records] == ["9100"], "what went is told"
        assert torch.equal(db.get_tensor_by_id("d", "9200").tensor, made(9_200))
        assert newer.exists()
