"""salvage saves what is left of a database that cannot be opened, and leaves nothing out in silence."""

from __future__ import annotations

import random
import shutil
import stat
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pytest
import torch
from xxhash import xxh3_64

from tensordb import TensorStorage
from tensordb.catalog.failures import is_damage
from tensordb.encoding import Base, CompressionConfig, PayloadReader, encode
from tensordb.errors import AlreadyExistsError, FormatError, NotFoundError, StoreError
from tensordb.payloads.layout import pack_header
from tensordb.salvage import DATASET, salvage

from .programs import made
from .scenarios import build, contents, digest
from .test_repair import flip

BLOCK = 1 << 18
FIRST_BLOCK = 12_288
ROWS = 8_000
"""Of which several pieces are tried one by one."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that is never changed."""
    folder = tmp_path_factory.mktemp("built") / "db"
    build(folder)
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "db"))


def test_salvage_keeps_everything_when_only_the_write_ahead_log_is_damaged(folder: Path, tmp_path: Path) -> None:
    with TensorStorage(folder) as db:
        before = contents(db)
        db.insert("d", made(5, 10), record_id="late")
        shutil.copytree(folder, tmp_path / "copy")
    log = tmp_path / "copy" / "catalog.duckdb.wal"
    sound = log.read_bytes()
    for position in range(20, len(sound), 9):
        log.write_bytes(sound)
        flip(log, position)
        report = salvage(tmp_path / "copy", tmp_path / "new")
        if any("write-ahead log" in each for each in report.not_salvaged):
            break
        shutil.rmtree(tmp_path / "new")  # a log that ends early looks like one that was being written
    damaged = log.read_bytes()
    assert damaged != sound, "the source is only read"
    assert len(damaged) == len(sound)
    with TensorStorage(tmp_path / "new") as db:
        assert contents(db) == before


def spoil(catalog: Path, block: int) -> None:
    """Overwrite a part of a block, so that no one byte explains what is wrong."""
    with catalog.open("r+b") as content:
        content.seek(FIRST_BLOCK + block * BLOCK + 16)
        content.write(random.Random(block).randbytes(4_000))


@pytest.fixture(scope="module")
def filled(built: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A database whose records take several blocks and have an index; and what they are."""
    folder = Path(shutil.copytree(built, tmp_path_factory.mktemp("filled") / "db"))
    with TensorStorage(folder) as db:
        metadata = [{"text": f"{i % 97}", "i": i} for i in range(ROWS)]
        db.insert_many("d", torch.arange(4.0 * ROWS).reshape(-1, 4), metadata)
        db.create_index("d", "text")
        return folder, {record.id: (digest(record.tensor), record.metadata) for record in db.scan("d")}


@pytest.mark.parametrize("block", [1, 7, 20])
def test_salvage_keeps_all_but_the_rows_of_a_damaged_block_of_the_catalog(
    filled: tuple[Path, dict[str, object]], tmp_path: Path, block: int
) -> None:
    folder, new, expected = tmp_path / "db", tmp_path / "new", filled[1]
    shutil.copytree(filled[0], folder)
    size = (folder / "catalog.duckdb").stat().st_size
    spoil(folder / "catalog.duckdb", block % (size // BLOCK))
    report = salvage(folder, new)
    with TensorStorage(new) as db:
        assert db.verify().damaged == ()
        found = {record.id: (digest(record.tensor), record.metadata) for record in db.scan("d")}
        assert found.items() <= expected.items()
        assert len(found) == len(expected) or not report.ok
        assert len(found) > 15, "what lay in other blocks is kept"
        few = [key for key, (_, document) in found.items() if document.get("text") == "5"]
        assert sorted(record.id for record in db.query("d", "metadata.text = '5'")) == sorted(few)
        db.insert_many("d", torch.zeros(3, 4))
        db.delete_where("d", "true")
        db.maintenance.compact(min_dead=0)
        assert not db.verify().damaged


@pytest.mark.parametrize("catalog", [None, b"", bytes(30_000)], ids=["missing", "empty", "zeros"])
def test_salvage_without_a_catalog_finds_the_tensors_in_the_segments(
    folder: Path, tmp_path: Path, catalog: bytes | None
) -> None:
    (folder / "catalog.duckdb").unlink()
    if catalog is not None:
        (folder / "catalog.duckdb").write_bytes(catalog)
    report = salvage(folder, tmp_path / "new")
    assert not report.ok
    with TensorStorage(tmp_path / "new") as db:
        found = {digest(record.tensor) for record in db.scan(DATASET)}
        assert {digest(made(10 + i, 6_000)) for i in range(3)} <= found
        assert report.records == db.count(DATASET)
        assert db.verify().ok


def test_salvage_refuses_what_is_no_database_and_a_target_that_exists(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        salvage(tmp_path, tmp_path / "new")
    with pytest.raises(AlreadyExistsError):
        salvage(folder, tmp_path)


def places(folder: Path) -> list[tuple[int, int]]:
    """Return where the payloads of the only segment begin and end."""
    with TensorStorage(folder, read_only=True) as db:
        rows = db.sql("SELECT position, stored_nbytes FROM tensordb.objects ORDER BY position").to_pylist()
    return [(row["position"], row["position"] + row["stored_nbytes"]) for row in rows]


def only_segment(folder: Path) -> Path:
    (file,) = (folder / "segments").iterdir()
    return file


def of_large_ones(folder: Path) -> list[torch.Tensor]:
    """Make a database of some tensors in a segment."""
    tensors = [made(i, 6_000) for i in range(6)]
    with TensorStorage(folder) as db:
        db.create_dataset("d")
        for tensor in tensors:
            db.insert("d", tensor)
    return tensors


def saved(folder: Path) -> list[str]:
    with TensorStorage(folder, read_only=True) as db:
        assert db.verify().ok
        return sorted(digest(record.tensor) for record in db.scan(DATASET))


@pytest.mark.parametrize("byte", [0, 3, 5, 30], ids=["magic", "version", "length", "table"])
def test_a_damaged_header_costs_its_own_tensor_and_its_place_is_told(tmp_path: Path, byte: int) -> None:
    tensors = of_large_ones(tmp_path / "db")
    begin, end = places(tmp_path / "db")[3]
    flip(only_segment(tmp_path / "db"), begin + byte)
    (tmp_path / "db" / "catalog.duckdb").unlink()
    report = salvage(tmp_path / "db", tmp_path / "new")
    assert saved(tmp_path / "new") == sorted(digest(each) for each in tensors[:3] + tensors[4:])
    catalog, gap = report.not_salvaged
    assert "catalog" in catalog
    assert f"bytes {begin} to {-(-end // 64) * 64}" in gap


@pytest.mark.parametrize("cut", [64, 20_000])
def test_zeros_at_the_end_of_a_segment_cost_no_tensor_before_them(tmp_path: Path, cut: int) -> None:
    tensors = of_large_ones(tmp_path / "db")
    begin, end = places(tmp_path / "db")[-1]
    file = only_segment(tmp_path / "db")
    file.write_bytes(file.read_bytes()[:end] + bytes(cut))
    (tmp_path / "db" / "catalog.duckdb").unlink()
    assert len(salvage(tmp_path / "db", tmp_path / "new").not_salvaged) == 1 + (cut > 64)
    assert saved(tmp_path / "new") == sorted(digest(each) for each in tensors)
    file.write_bytes(file.read_bytes()[: begin + 5_000])
    report = salvage(tmp_path / "db", tmp_path / "newer")
    assert saved(tmp_path / "newer") == sorted(digest(each) for each in tensors[:-1])
    assert f"at byte {begin}" in report.not_salvaged[1]
    assert "cut short" in report.not_salvaged[1]


def test_differences_are_saved_with_the_tensors_they_were_made_from(folder: Path, tmp_path: Path) -> None:
    with TensorStorage(folder) as db:
        assert db.sql("SELECT count(*) AS n FROM tensordb.deltas").to_pylist() == [{"n": 2}]
        wanted = [db.checkpoints.load("run", step=step)["model"]["w"] for step in range(2)]
    (folder / "catalog.duckdb").unlink()
    assert len(salvage(folder, tmp_path / "new").not_salvaged) == 1
    assert {digest(each) for each in wanted} <= set(saved(tmp_path / "new"))


def segment_of(folder: Path, payloads: Sequence[bytes]) -> None:
    """Make a folder with one segment of these payloads, as a database has that lost its catalog."""
    (folder / "segments").mkdir(parents=True)
    content = pack_header(1, bytes(16))
    for each in payloads:
        content += bytes(-len(content) % 64) + each
    (folder / "segments" / f"{1:016x}.seg").write_bytes(content)


def encoded(tensor: torch.Tensor, base: Base | None = None, compression: str = "zstd") -> tuple[bytes, bytes]:
    """Return a payload and its content id."""
    found = encode(tensor, CompressionConfig(compression), base=base)
    return b"".join(found.buffers), found.content_id


def test_a_chain_of_differences_is_followed_to_its_end_wherever_its_parts_are(tmp_path: Path) -> None:
    tensors, payloads = [made(0, 30_000).bfloat16()], list[bytes]()
    known: dict[bytes, PayloadReader] = {}
    base = None
    for step in range(4):
        payload, content_id = encoded(tensors[-1], base)
        known[content_id] = PayloadReader(payload, bases=known.__getitem__)
        assert (known[content_id].base_id is not None) == (step > 0)
        base = Base(content_id, known[content_id])
        payloads.append(payload)
        tensors.append(tensors[-1].clone())
        tensors[-1][step::60] *= 2
    segment_of(tmp_path / "db", payloads[::-1])
    assert len(salvage(tmp_path / "db", tmp_path / "new").not_salvaged) == 1
    assert saved(tmp_path / "new") == sorted(digest(each) for each in tensors[:4])
    segment_of(tmp_path / "broken", [*payloads[2:], payloads[0]])
    report = salvage(tmp_path / "broken", tmp_path / "less")
    assert saved(tmp_path / "less") == [digest(tensors[0])]
    assert sum("which is not there" in each for each in report.not_salvaged) == 2


def test_payloads_of_a_newer_version_are_told_and_those_inside_of_a_tensor_are_not_taken_for_some(
    tmp_path: Path,
) -> None:

    inner = encoded(made(1, 3_000))[0]
    inner += bytes((16 - len(inner)) % 64)  # so that some of them lie where payloads may begin
    outer = torch.frombuffer(bytearray(inner * 8), dtype=torch.uint8)
    payload = bytearray(encoded(made(2, 3_000))[0])
    size = int.from_bytes(payload[4:8], "little")
    payload[3] = 2
    payload[8:16] = xxh3_64(payload[:8] + payload[16:size]).intdigest().to_bytes(8, "little")
    last = made(3, 3_000)
    segment_of(tmp_path / "db", [encoded(outer, compression="none")[0], bytes(payload), encoded(last)[0]])
    _, told = salvage(tmp_path / "db", tmp_path / "new").not_salvaged
    assert "format 2" in told
    assert saved(tmp_path / "new") == sorted([digest(outer), digest(last)])


def test_a_missing_stretch_of_a_segment_costs_only_what_lay_in_it(tmp_path: Path) -> None:
    tensors = of_large_ones(tmp_path / "db")
    begin = places(tmp_path / "db")[2][0]
    file = only_segment(tmp_path / "db")
    content = file.read_bytes()
    file.write_bytes(content[: begin + 6_400] + content[begin + 12_800 :])
    (tmp_path / "db" / "catalog.duckdb").unlink()
    report = salvage(tmp_path / "db", tmp_path / "new")
    assert saved(tmp_path / "new") == sorted(digest(each) for each in tensors[:2] + tensors[3:])
    assert f"at byte {begin}" in report.not_salvaged[1]


@pytest.mark.parametrize(("first", "second"), [(11, 14), (14, 17)])
def test_blocks_that_changed_places_cost_nothing_that_other_rows_or_payloads_tell(
    folder: Path, tmp_path: Path, first: int, second: int
) -> None:
    with TensorStorage(folder) as db:
        whole = contents(db)
    catalog = folder / "catalog.duckdb"
    sound = catalog.read_bytes()
    one, other = (slice(FIRST_BLOCK + each * BLOCK, FIRST_BLOCK + (each + 1) * BLOCK) for each in (first, second))
    swapped = bytearray(sound)
    swapped[one], swapped[other] = sound[other], sound[one]
    catalog.write_bytes(swapped)
    report = salvage(folder, tmp_path / "new")
    assert report.ok
    with TensorStorage(tmp_path / "new", read_only=True) as db:
        assert contents(db) == whole


def program(path: Path, lines: str) -> str:
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_crash_while_the_catalog_is_read_costs_no_rows_that_can_be_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TensorStorage(folder) as db:
        whole = contents(db)
    flag = tmp_path / "crashed"
    crash = f"""test -e {flag} && exec {sys.executable} "$@"
touch {flag}
echo '{{"step": "records_1 "}}'
kill -SEGV $$"""
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python", crash))
    assert salvage(folder, tmp_path / "new").ok
    assert flag.exists()
    with TensorStorage(tmp_path / "new") as db:
        assert contents(db) == whole


def test_the_process_that_reads_the_catalog_loads_neither_torch_nor_the_rest_of_the_package(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = tmp_path / "imported"
    line = f'exec {sys.executable} -X importtime "$@" 2> {imported}'
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python", line))
    assert salvage(folder, tmp_path / "new").ok
    names = {each.rpartition("|")[2].strip() for each in imported.read_text().splitlines()}
    assert "tensordb.catalog.rebuilding" in names
    assert not names & {"torch", "tensordb", "tensordb.storage"}


@pytest.mark.parametrize("lines", ["kill -KILL $$", "exit 3", """echo '{"error": "StoreError", "message": "m"}'"""])
def test_what_is_no_damage_costs_neither_the_log_nor_the_catalog(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str
) -> None:
    with TensorStorage(folder) as db:
        db.insert("d", made(5, 10), record_id="late")
        shutil.copytree(folder, tmp_path / "copy")
        whole = contents(db)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", program(tmp_path / "python", lines))
        with pytest.raises(StoreError):
            salvage(tmp_path / "copy", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert salvage(tmp_path / "copy", tmp_path / "new").ok
    with TensorStorage(tmp_path / "new") as db:
        assert contents(db) == whole


@pytest.mark.parametrize(
    ("error", "damage"),
    [
        (duckdb.OutOfMemoryException("Out of Memory Error: could not allocate block of size 256.0 KiB"), False),
        (duckdb.FatalException("FATAL Error: Failed to create checkpoint: Out of Memory Error: failed"), False),
        (duckdb.IOException('IO Error: Cannot open file "catalog.duckdb": Too many open files'), False),
        (duckdb.IOException('IO Error: Could not read from file "catalog.duckdb": Input/output error'), False),
        (duckdb.IOException("IO Error: Could not write file: No space left on device"), False),
        (duckdb.IOException("IO Error: Corrupt database file: computed checksum 1 does not match"), True),
        (duckdb.FatalException("FATAL Error: database has been invalidated because of a previous fatal error"), True),
        (duckdb.InternalException("INTERNAL Error: Attempted to access index 9 within vector of size 3"), True),
        (duckdb.SerializationException("Serialization Error: Failed to deserialize"), True),
        (duckdb.ConversionException("Conversion Error: invalid"), True),
    ],
)
def test_errors_of_the_system_are_not_taken_for_damage(error: duckdb.Error, damage: bool) -> None:
    assert is_damage(error) == damage


@pytest.mark.parametrize("version", [1, 2])
def test_a_database_of_an_older_format_is_salvaged_whole(tmp_path: Path, version: int) -> None:
    with zipfile.ZipFile(Path(__file__).parents[1] / "old_files" / f"format-{version}.zip") as archive:
        archive.extractall(tmp_path / "old")
    assert salvage(tmp_path / "old", tmp_path / "new").ok
    with TensorStorage(tmp_path / "old") as old, TensorStorage(tmp_path / "new") as new:
        assert contents(new) == contents(old)


def test_a_catalog_of_a_newer_release_is_not_given_up(folder: Path, tmp_path: Path) -> None:
    with duckdb.connect(str(folder / "catalog.duckdb")) as con:
        con.execute("UPDATE tensordb.info SET value = '999' WHERE name = 'format'")
    with pytest.raises(FormatError, match="999"):
        salvage(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()
