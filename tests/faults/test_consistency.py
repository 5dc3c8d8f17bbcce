"""Damage that no checksum of DuckDB's shows: `verify` finds that the catalog's tables contradict each other.

And it finds nothing in a sound database, whatever goes on in it.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from tensordb import TensorStorage
from tensordb.catalog import blocks
from tensordb.errors import TensorDBError

from .programs import fork, made
from .scenarios import SCENARIOS, build, contents

HEADERS, BLOCK = 3 * 4096, 1 << 18


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that is never changed."""
    folder = tmp_path_factory.mktemp("base") / "db"
    build(folder)
    with TensorStorage(folder) as db:
        db.insert_many("d", [made(40 + i, 5) for i in range(30)], [{"text": f"t{i}"} for i in range(30)])
        db.create_index("d", "text")
        db.checkpoints.tag(db.checkpoints.list("run")[0].id, "chosen")
    return folder


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    shutil.copytree(base, tmp_path / "db")
    return tmp_path / "db"


def said(folder: Path) -> str:
    """Return what verify says of the catalog, and repair too."""
    with TensorStorage(folder, read_only=True) as db:
        report = db.verify()
        assert db.maintenance.repair(dry_run=True).damaged_catalog == report.damaged_catalog
    assert report.ok == (not report.damaged_catalog)
    return "; ".join(report.damaged_catalog)


DAMAGE = {
    "UPDATE tensordb.objects SET refs = refs + 1 WHERE position = 128": "1 objects count another number of references",
    "UPDATE tensordb.checkpoints SET tensors = 7": "counts 7 of them",
    "UPDATE tensordb.checkpoint_tensors SET position = 0": "1 places for 2 tensors",
    "UPDATE tensordb.checkpoints SET parent = 12 WHERE parent IS NOT NULL": "'checkpoints' name by parent",
    "DELETE FROM tensordb.tags; INSERT INTO tensordb.tags VALUES (9, 'x', 9, now())": "'tags' name by run_id",
    "UPDATE tensordb.weight_labels SET number = 9": "'weight_labels' name by number",
    "INSERT INTO tensordb.deltas VALUES ('x'::BLOB, 'y'::BLOB, 1, 1)": "'deltas' name by base_id",
    "UPDATE tensordb.records_1 SET spec_id = 99 WHERE record_id = 'small0'": "'records_1' name by spec_id",
    "UPDATE tensordb.objects SET position = 128": "objects overlap with the next one",
    "DROP VIEW main.d": "the view of dataset 'd' is missing",
    "DROP TABLE tensordb.index_1_1": "the index on 'text' of dataset 'd' is missing",
    "DELETE FROM tensordb.index_1_1 WHERE value = 't3'": "has 29 entries that are not those of 30 records",
    "UPDATE tensordb.index_1_1 SET value = 'other' WHERE value = 't3'": "has 30 entries that are not those of 30",
    "CREATE TABLE tensordb.records_77 (seq BIGINT)": "'records_77' belongs to no dataset",
}


def test_a_sound_database_says_nothing(folder: Path) -> None:
    assert said(folder) == ""


@pytest.mark.parametrize("statement", DAMAGE)
def test_what_the_tables_contradict_each_other_in_is_said(folder: Path, statement: str) -> None:
    with duckdb.connect(str(folder / "catalog.duckdb")) as con:
        con.execute(statement)
    assert DAMAGE[statement] in said(folder)


def swapped(folder: Path, work: Path) -> Iterator[tuple[int, int]]:
    """Yield pairs of blocks in use, each block once, while they are in each other's place in a copy of the database."""
    sound = (folder / "catalog.duckdb").read_bytes()
    numbers = [
        n for n in range((len(sound) - HEADERS) // BLOCK) if n not in blocks.check(folder / "catalog.duckdb").free
    ]
    for one, other in zip(numbers[::2], numbers[1::2], strict=False):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(folder, work)
        content = bytearray(sound)
        a, b = (slice(HEADERS + n * BLOCK, HEADERS + (n + 1) * BLOCK) for n in (one, other))
        content[a], content[b] = sound[b], sound[a]
        (work / "catalog.duckdb").write_bytes(content)
        if not blocks.check(work / "catalog.duckdb").damaged:  # the list of free blocks has its place
            yield one, other


def found_by_verify(folder: Path) -> bool:
    try:
        with TensorStorage(folder, read_only=True) as db:
            return not db.verify().ok
    except TensorDBError:
        return True


def test_blocks_in_each_others_place_are_found_or_change_nothing(folder: Path, tmp_path: Path) -> None:
    expected, work, refused = read(folder), tmp_path / "work", 0
    for pair in swapped(folder, work):
        child = fork()  # DuckDB may end the process that reads this
        if not child:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                os._exit(1 if found_by_verify(work) else 0 if read(work) == expected else 2)
            finally:
                os._exit(3)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) in (0, 1), pair
        refused += bool(status)
    assert refused > 3


def test_no_record_is_lost_to_an_index_of_old_blocks_without_verify_saying_so(folder: Path, tmp_path: Path) -> None:
    """A lost write: the file has the new tables, and of the blocks that hold keys the old ones."""
    with TensorStorage(folder) as db:
        before = (folder / "catalog.duckdb").read_bytes()
        db.insert_many("d", [made(90 + i, 5) for i in range(20)])
    after = (folder / "catalog.duckdb").read_bytes()
    changed = [
        place
        for place in range(HEADERS, min(len(before), len(after)), BLOCK)
        if before[place : place + BLOCK] != after[place : place + BLOCK]
    ]
    assert changed
    assert not found_by_verify(folder)
    with TensorStorage(folder, read_only=True) as db:
        expected = contents(db)
    for place in changed:
        (folder / "catalog.duckdb").write_bytes(after[:place] + before[place : place + BLOCK] + after[place + BLOCK :])
        assert found_by_verify(folder) or read(folder) == expected


def read(folder: Path) -> object:
    with TensorStorage(folder, read_only=True) as db:
        return contents(db)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_sound_database_contradicts_itself_in_nothing_whatever_was_done(folder: Path, name: str) -> None:
    with TensorStorage(folder) as db:
        SCENARIOS[name](db)
    with TensorStorage(folder, read_only=True) as db:
        report = db.verify()
        assert report.ok, report.damaged_catalog


def test_a_transaction_that_is_open_is_no_contradiction(folder: Path) -> None:
    with TensorStorage(folder) as db, db.transaction():
        db.insert_many("d", [made(60 + i, 400) for i in range(9)], [{"text": "new"}] * 9)
        db.delete_tensor("d", "page3")
        db.update_tensor_metadata("d", "small1", {"text": "t3"})
        db.checkpoints.delete(db.checkpoints.list("run")[0].id)
        report = db.verify()
        assert report.ok, report.damaged_catalog


def test_nothing_is_found_while_others_write_and_compact(folder: Path) -> None:
    def write() -> None:
        with TensorStorage(folder) as db:
            for number in range(6):
                db.insert("d", made(300 + number, 4000), {"text": f"w{number}"}, record_id=f"w{number}")
                db.delete_tensor("d", f"w{number}")
                if number % 2:
                    db.maintenance.compact(min_dead=0)

    writer = threading.Thread(target=write)
    writer.start()
    with TensorStorage(folder) as db:
        while writer.is_alive():
            report = db.verify()
            assert report.ok, report
    writer.join()
