"""A damaged catalog or write-ahead log: an error of tensordb's, or right data; never a wrong tensor, never a hang."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensordb import TensorStorage
from tensordb.errors import IntegrityError, TensorDBError

from .conftest import Sample
from .programs import made


def damaged_copies(file: Path, count: int) -> Iterator[str]:
    """Damage the file in one way after another, each time from its first state, and yield what was done."""
    content, rng = file.read_bytes(), random.Random(11)
    for number in range(count):
        position = rng.randrange(len(content)) if number % 3 else rng.randrange(min(len(content), 40_000))
        changed = bytearray(content)
        if number % 5 == 4:
            del changed[position:]
        else:
            changed[position] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        yield f"{'cut at' if number % 5 == 4 else 'flipped at'} {position}"


def survives(folder: Path, sample: Sample) -> set[str] | None:
    """Use a damaged database; return what it holds, None after a typed error. Anything else raises."""
    try:
        with TensorStorage(folder, busy_timeout=5) as db:
            found = {record.id: record for record in db.scan("d")}
            for key, record in found.items():
                assert key not in sample.tensors or record.tensor.equal(sample.tensors[key])
            db.insert("d", made(1, 5))
            db.maintenance.compact(min_dead=0)
            assert db.verify().ok
            return set(found)
    except IntegrityError:
        return None


def test_damage_to_the_catalog_file_is_an_integrity_error_or_harmless(sample: Sample, tmp_path: Path) -> None:
    folder = sample.copy(tmp_path / "db")
    spared, wal = 0, folder / "catalog.duckdb.wal"
    for what in damaged_copies(folder / "catalog.duckdb", 20):
        wal.unlink(missing_ok=True)
        shutil.rmtree(folder / "segments")
        shutil.copytree(sample.folder / "segments", folder / "segments")
        found = survives(folder, sample)
        assert found is None or found == set(sample.tensors), what
        spared += found is not None
    assert spared < 20


def test_damage_to_the_write_ahead_log_is_an_error_or_costs_only_its_end(sample: Sample, tmp_path: Path) -> None:
    folder = sample.copy(tmp_path / "db")
    with TensorStorage(folder) as db:
        keys = [db.insert("d", made(i, 30), record_id=f"{i:02}") for i in range(20)]
        kept = shutil.copytree(folder, tmp_path / "kept")
    errors, work = 0, tmp_path / "work"
    (tmp_path / "log").write_bytes((kept / "catalog.duckdb.wal").read_bytes())
    for what in damaged_copies(tmp_path / "log", 20):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(kept, work)
        shutil.copy(tmp_path / "log", work / "catalog.duckdb.wal")
        found = survives(work, sample)
        errors += found is None
        if found is not None:
            assert found >= set(sample.tensors), what
            late = sorted(found - set(sample.tensors))
            assert late == keys[: len(late)], f"{what}: something is missing in the middle"
    assert errors > 5


@pytest.mark.parametrize("content", [b"", b"not a database", bytes(20_000)], ids=["empty", "text", "zeros"])
def test_a_catalog_that_is_something_else_gives_an_error_of_tensordb(
    sample: Sample, tmp_path: Path, content: bytes
) -> None:
    folder = sample.copy(tmp_path / "db")
    (folder / "catalog.duckdb").write_bytes(content)
    for read_only in (True, False):
        with pytest.raises(TensorDBError):
            TensorStorage(folder, read_only=read_only).get_dataset("d")
    assert (folder / "catalog.duckdb").read_bytes()[: len(content)] == content
