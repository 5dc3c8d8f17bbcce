"""salvage mends the catalog where its checksums tell how, and makes anew what other bytes tell of lost rows."""

from __future__ import annotations

import random
import shutil
import struct
import zipfile
from pathlib import Path

import duckdb
import numpy as np
import pytest
import torch

from tensordb import TensorStorage
from tensordb.catalog import block_mending, blocks, schema
from tensordb.cli import main
from tensordb.errors import IntegrityError, UnsupportedFormatError
from tensordb.salvage import DATASET, salvage

from .programs import made
from .scenarios import Contents, build, contents, digest
from .test_repair import flip
from .test_salvage import BLOCK, FIRST_BLOCK, spoil

OLD_FILES = Path(__file__).parents[1] / "old_files"
STRANGE = """d" AS SELECT printf('00%013x' FROM tensordb.records_9 "é"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Contents]:
    """A database that is never changed, and what it holds."""
    folder = tmp_path_factory.mktemp("built") / "db"
    build(folder)
    with TensorStorage(folder) as db:
        db.create_dataset(STRANGE)
        db.insert_many(
            STRANGE, torch.arange(40).reshape(10, 4), [{"nested": {"x": [i]}, "t": f"{i}"} for i in range(10)]
        )
        db.insert(STRANGE, torch.zeros(2, 3, dtype=torch.bool))
        return folder, contents(db)


@pytest.fixture
def folder(built: tuple[Path, Contents], tmp_path: Path) -> Path:
    return Path(shutil.copytree(built[0], tmp_path / "db"))


@pytest.fixture
def whole(built: tuple[Path, Contents]) -> Contents:
    return built[1]


def blocks_of(folder: Path, table: str) -> list[int]:
    with duckdb.connect(str(folder / "catalog.duckdb"), read_only=True) as con:
        rows = con.execute(f"SELECT DISTINCT block_id FROM pragma_storage_info('tensordb.{table}') WHERE block_id >= 0")
        return sorted(number for (number,) in rows.fetchall())


def metadata_blocks(folder: Path) -> list[int]:
    with (folder / "catalog.duckdb").open("rb") as content:
        headers = blocks.read_headers(content.fileno())
        lists = blocks.read_lists(content.fileno(), blocks.layout_of(headers))
    assert lists is not None
    return sorted(lists.metadata)


def salvaged(folder: Path, tmp_path: Path) -> tuple[Contents, tuple[str, ...]]:
    """Return what is there after salvaging, verified, and what is told as lost."""
    report = salvage(folder, tmp_path / "new")
    assert sorted(each.name for each in (tmp_path / "new").glob("catalog*")) == ["catalog.duckdb"]
    with TensorStorage(tmp_path / "new") as db:
        assert db.verify().ok
        return contents(db), report.not_salvaged


def test_flipped_bits_in_padding_cost_nothing(
    folder: Path, whole: Contents, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = folder / "catalog.duckdb"
    some = {*metadata_blocks(folder), *blocks_of(folder, "records_1"), *blocks_of(folder, "datasets")}
    for block in some:
        flip(catalog, FIRST_BLOCK + block * BLOCK + 200_001)
    damaged = catalog.read_bytes()
    assert main(["repair", str(folder), str(tmp_path / "new")]) == 1, "it was damaged"
    assert capsys.readouterr().out.count("mended: catalog: block") == len(some)
    assert catalog.read_bytes() == damaged, "the source is only read"
    with TensorStorage(tmp_path / "new") as db:
        assert contents(db) == whole
        assert db.verify().ok


def test_damage_in_padding_is_mended_beside_damage_that_is_not(folder: Path, whole: Contents, tmp_path: Path) -> None:
    catalog = folder / "catalog.duckdb"
    flip(catalog, FIRST_BLOCK + blocks_of(folder, "records_1")[0] * BLOCK + 200_001)
    spoil(catalog, blocks_of(folder, "info")[0])
    assert salvaged(folder, tmp_path) == (whole, ())


def test_a_value_in_the_midst_of_zeros_is_not_taken_for_damage(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    with TensorStorage(folder, compression_preset="none") as db:
        db.create_dataset("d")
        for i in range(4):
            alike = torch.zeros(600, dtype=torch.int64)
            alike[[150, 450]] = 1 << (9 + i)
            db.insert("d", alike, record_id=f"r{i}")
        whole = contents(db)
    catalog = folder / "catalog.duckdb"
    sound = catalog.read_bytes()
    tried = 0
    for i in range(4):
        word = struct.pack("<q", 1 << (9 + i))
        first = sound.index(bytes(150 * 8) + word + bytes(200 * 8), FIRST_BLOCK) + 150 * 8
        place = first + 300 * 8 + 1  # of the other one: with it gone, the first is the only one that explains the sum
        assert sound[place] == 2 << i
        catalog.write_bytes(sound[:place] + b"\0" + sound[place + 1 :])
        tried += bool(block_mending.padding_candidates(catalog))
        report = salvage(folder, tmp_path / f"new{i}")
        assert report.mended_catalog == ()
        with TensorStorage(tmp_path / f"new{i}") as db:
            assert contents(db).items() <= whole.items() or report.not_salvaged
    assert tried, "of some it is the only explanation"


def test_damage_among_values_is_not_taken_for_damage_in_what_no_row_is_in(tmp_path: Path) -> None:
    folder, chance = tmp_path / "db", random.Random(3)
    losses = [1 + chance.random() for _ in range(12)]
    with TensorStorage(folder) as db:
        db.create_dataset("d")
        for i, loss in enumerate(losses):
            hashes = {} if i == 5 else {"hash": chance.getrandbits(62)}  # the gap of a NULL is no zero, and no value
            db.insert("d", torch.zeros(1), {"loss": loss, "zero": 0, **hashes}, record_id=f"r{i}")
        db.delete_tensor("d", "r7")
    catalog = folder / "catalog.duckdb"
    sound = catalog.read_bytes()
    for i, byte, bit in ((3, 7, 7), (4, 3, 1)):
        place = sound.find(struct.pack("<d", losses[i]), FIRST_BLOCK)
        while place % 8:  # those in documents are not in the column
            place = sound.find(struct.pack("<d", losses[i]), place + 1)
        catalog.write_bytes(sound[: place + byte] + bytes([sound[place + byte] ^ 1 << bit]) + sound[place + byte + 1 :])
        report = salvage(folder, tmp_path / f"new{i}{bit}")
        with TensorStorage(tmp_path / f"new{i}{bit}") as db:
            rows = db.sql("SELECT record_id, metadata.loss AS loss FROM d").to_pylist()
        assert all(losses[int(row["record_id"][1:])] == row["loss"] for row in rows)
        assert len(rows) == 11 or report.not_salvaged


def alone_in(block: bytes) -> list[int]:
    """Return the numbers of the words of a block that are like no other, and of eight bytes that are not zero."""
    dense = np.frombuffer(block, np.uint8).reshape(-1, 8).all(axis=1)
    _, where, counts = np.unique(np.frombuffer(block, "<u8"), return_index=True, return_counts=True)
    return sorted(set(where[counts == 1].tolist()) & set(np.nonzero(dense)[0].tolist()))


def test_a_flipped_bit_among_values_is_put_right_where_the_checksum_tells_which(tmp_path: Path) -> None:
    folder, chance = tmp_path / "db", random.Random(1)
    with TensorStorage(folder) as db:
        db.create_dataset("d")
        for i in range(60):
            db.insert("d", made(i, 1_000), record_id=f"r{i}")
        whole = contents(db)
    catalog = folder / "catalog.duckdb"
    sound = catalog.read_bytes()
    places = [
        FIRST_BLOCK + block * BLOCK + word * 8
        for block in blocks_of(folder, "records_1")
        for word in alone_in(sound[FIRST_BLOCK + block * BLOCK :][:BLOCK])
    ]
    assert len(places) > 10_000
    for place in chance.sample(places, 40):
        flip(catalog, place + chance.randrange(2))
        assert block_mending.mend(catalog)
        assert catalog.read_bytes() == sound
        flip(catalog, place + chance.randrange(6, 8))  # of which other words may be the reason as well
        assert not block_mending.mend(catalog) or catalog.read_bytes() == sound
        catalog.write_bytes(sound)
    flip(catalog, places[5_000])
    assert salvaged(folder, tmp_path) == (whole, ())


@pytest.mark.parametrize("position", [0, 15, 55, 133, 4_103, 4_112, 8_215])
def test_a_flipped_bit_of_a_header_or_its_checksum_costs_nothing(
    folder: Path, whole: Contents, tmp_path: Path, position: int
) -> None:
    flip(folder / "catalog.duckdb", position)
    assert salvaged(folder, tmp_path) == (whole, ())


def test_a_header_that_is_put_right_still_belongs_to_the_log_beside_it(folder: Path, tmp_path: Path) -> None:
    with TensorStorage(folder) as db:
        db.insert("d", made(5, 10), record_id="late")
        shutil.copytree(folder, tmp_path / "copy")
        whole = contents(db)
    assert (tmp_path / "copy" / "catalog.duckdb.wal").stat().st_size
    flip(tmp_path / "copy" / "catalog.duckdb", 131)
    assert salvaged(tmp_path / "copy", tmp_path) == (whole, ())


def test_a_flipped_checksum_of_a_block_costs_nothing(folder: Path) -> None:
    catalog = folder / "catalog.duckdb"
    sound = catalog.read_bytes()
    flip(catalog, FIRST_BLOCK + 1)
    assert block_mending.mend(catalog)
    assert catalog.read_bytes() == sound


def test_what_more_than_a_byte_explains_is_left_alone(folder: Path) -> None:
    catalog = folder / "catalog.duckdb"
    for block in range(4):
        spoil(catalog, block)
    damaged = catalog.read_bytes()
    assert block_mending.mend(catalog) == []
    assert block_mending.padding_candidates(catalog) == {}
    assert catalog.read_bytes() == damaged


def test_datasets_whose_rows_are_lost_come_back_with_names_ids_metadata_and_types(
    folder: Path, whole: Contents, tmp_path: Path
) -> None:
    with TensorStorage(folder) as db:
        db.create_index("d", "name")
    for block in blocks_of(folder, "datasets"):
        spoil(folder / "catalog.duckdb", block)
    found, told = salvaged(folder, tmp_path)
    assert found == whole
    assert [each.rpartition(":")[0] for each in told] == [f"of dataset {name!r}" for name in ("d", STRANGE)]
    with TensorStorage(tmp_path / "new") as db:
        assert len(db.query(STRANGE, "metadata.nested.x[1] >= 8 AND metadata.t = '9'")) == 1
        db.insert(STRANGE, torch.ones(1), {"nested": {"x": [0.5]}, "t": "new"})
        db.insert("d", torch.ones(1), {"i": "text"})
        db.create_index("d", "name")
        assert db.query("d", "metadata.name = '1'")[0].metadata["i"] == 11
        assert db.verify().ok


def test_dtypes_and_shapes_whose_rows_are_lost_come_back_from_the_payloads(
    folder: Path, whole: Contents, tmp_path: Path
) -> None:
    for block in blocks_of(folder, "specs"):
        spoil(folder / "catalog.duckdb", block)
    assert salvaged(folder, tmp_path) == (whole, ())


def test_what_no_payload_tells_the_shape_of_is_taken_out_and_counted(
    folder: Path, whole: Contents, tmp_path: Path
) -> None:
    for block in blocks_of(folder, "specs"):
        spoil(folder / "catalog.duckdb", block)
    for file in (folder / "segments").iterdir():
        file.unlink()
    report = salvage(folder, tmp_path / "new")
    with TensorStorage(tmp_path / "new") as db:
        found = contents(db)
        assert db.verify().ok
    inline = [f"d/small{i}" for i in range(4)]
    assert {key: found.get(key) for key in inline} == {key: whole[key] for key in inline}
    assert any("'records_1', of which no payload tells dtype and shape" in each for each in report.not_salvaged)
    assert any("checkpoint of run 'run', step 0" in each for each in report.not_salvaged)


@pytest.mark.parametrize("table", ["info", "deltas", "objects"])
def test_tables_that_say_what_segments_say_too_cost_nothing(
    folder: Path, whole: Contents, tmp_path: Path, table: str
) -> None:
    for block in blocks_of(folder, table):
        spoil(folder / "catalog.duckdb", block)
    assert salvaged(folder, tmp_path) == (whole, ())


def test_a_run_whose_name_is_lost_keeps_its_checkpoints(folder: Path, whole: Contents, tmp_path: Path) -> None:
    for block in blocks_of(folder, "runs"):
        spoil(folder / "catalog.duckdb", block)
    found, told = salvaged(folder, tmp_path)
    assert told == ("the name of a run, which is 'salvaged-1' now", "runs without checkpoints, if there were any")
    assert {key.replace("salvaged-1@", "run@"): value for key, value in found.items()} == whole


@pytest.mark.parametrize("table", ["checkpoints", "checkpoint_tensors"])
def test_tensors_of_checkpoints_that_are_lost_are_kept(
    folder: Path, whole: Contents, tmp_path: Path, table: str
) -> None:
    for block in blocks_of(folder, table):
        spoil(folder / "catalog.duckdb", block)
    found, told = salvaged(folder, tmp_path)
    assert f"up to {2 if table == 'checkpoints' else 4} rows of the catalog's table {table!r}" in told
    assert {key: found.get(key) for key in whole if "@" not in key} == {k: v for k, v in whole.items() if "@" not in k}
    with TensorStorage(tmp_path / "new") as db:
        kept = {digest(record.tensor): record.metadata.get("name") for record in db.scan(DATASET)}
    for step in range(2):
        for name, value in whole[f"run@{step}"].items():
            if name != "tags":
                assert value in kept
                assert kept[value] == (f"model.{name}" if table == "checkpoints" else None)


def test_tensors_whose_names_are_lost_are_kept_where_their_segment_is_damaged_too(folder: Path, tmp_path: Path) -> None:
    spoil(folder / "catalog.duckdb", blocks_of(folder, "checkpoints")[0])
    for file in (folder / "segments").iterdir():
        flip(file, 20)  # of its header, for which it is written anew
    salvaged(folder, tmp_path)
    with TensorStorage(tmp_path / "new") as db:
        assert db.count(DATASET) == 4


def test_pages_whose_names_are_lost_come_back_as_records(folder: Path, whole: Contents, tmp_path: Path) -> None:
    for block in blocks_of(folder, "records_1"):
        spoil(folder / "catalog.duckdb", block)
    found, told = salvaged(folder, tmp_path)
    assert "the names of 11 tensors, which are in the dataset 'salvaged' now" in told
    kept = {value[0] for key, value in found.items() if key.startswith(f"{DATASET}/")}
    assert {whole[f"d/page{i}"][0] for i in range(8)} | {whole[f"d/large{i}"][0] for i in range(3)} == kept


def test_what_was_deleted_stays_away_where_no_name_is_lost(folder: Path, tmp_path: Path) -> None:
    with TensorStorage(folder) as db:
        db.delete_tensor("d", "large1")
        whole = contents(db)
    for table in ("objects", "runs", "datasets"):
        for block in blocks_of(folder, table):
            spoil(folder / "catalog.duckdb", block)
    found, _ = salvaged(folder, tmp_path)
    assert {key.replace("salvaged-1@", "run@"): value for key, value in found.items()} == whole


def test_that_deleted_tensors_may_be_among_those_without_names_is_told(folder: Path, tmp_path: Path) -> None:
    for table in ("objects", "records_1"):
        for block in blocks_of(folder, table):
            spoil(folder / "catalog.duckdb", block)
    assert any(each.startswith("which tensors were deleted") for each in salvaged(folder, tmp_path)[1])


def test_a_view_that_somebody_made_does_not_give_a_dataset_its_name(
    folder: Path, whole: Contents, tmp_path: Path
) -> None:
    with duckdb.connect(str(folder / "catalog.duckdb")) as con:
        ((text,),) = con.execute("SELECT sql FROM duckdb_views() WHERE view_name = 'd'").fetchall()
        body = text.rstrip("; \n").partition(" AS ")[2]
        con.execute(f"CREATE VIEW main.zzz AS {body} WHERE r.seq > 0")
        con.execute(f"CREATE VIEW main.aaa AS SELECT * FROM ({body})")
    for block in blocks_of(folder, "datasets"):
        spoil(folder / "catalog.duckdb", block)
    assert salvaged(folder, tmp_path)[0] == whole


def test_a_dataset_whose_name_nothing_tells_gets_one_and_a_view(folder: Path, tmp_path: Path) -> None:
    with duckdb.connect(str(folder / "catalog.duckdb")) as con:
        con.execute("DROP VIEW main.d")
    for block in blocks_of(folder, "datasets"):
        spoil(folder / "catalog.duckdb", block)
    assert "its name, the record ids that were generated for it" in salvaged(folder, tmp_path)[1][0]
    with TensorStorage(tmp_path / "new") as db:
        assert db.sql('SELECT count(*) AS n FROM "salvaged-1"').to_pylist() == [{"n": 15}]


def test_a_damaged_list_of_tables_costs_the_proof_alone(folder: Path, whole: Contents, tmp_path: Path) -> None:
    numbers = metadata_blocks(folder)
    for block in numbers:
        with (folder / "catalog.duckdb").open("r+b") as content:
            content.seek(FIRST_BLOCK + (block + 1) * BLOCK - 500)
            content.write(bytes(range(1, 100)))
    found, told = salvaged(folder, tmp_path)
    assert found == whole
    assert len(told) == len(numbers)
    assert all("the proof that the names, types and numbers of rows" in each for each in told)


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_the_tables_of_each_format_tell_which_it_is(tmp_path: Path, version: int) -> None:
    with zipfile.ZipFile(OLD_FILES / f"format-{version}.zip") as archive:
        archive.extractall(tmp_path)
    with duckdb.connect(str(tmp_path / "catalog.duckdb"), read_only=True) as con:
        assert schema.format_of(con) == version
        assert schema.format_by_tables(con) == version


def test_a_format_that_nobody_knows_is_not_taken_for_one_that_is_known(tmp_path: Path) -> None:
    with duckdb.connect() as con:
        schema.prepare(con, writable=True)
        con.execute("ALTER TABLE tensordb.specs ADD COLUMN strides BIGINT[]")
        with pytest.raises(UnsupportedFormatError, match="upgrade"):
            schema.format_by_tables(con)
        con.execute("DROP TABLE tensordb.tags")
        with pytest.raises(IntegrityError):
            schema.format_by_tables(con)
