"""One flipped bit anywhere in any file: the right data or a typed error, never a wrong tensor and never a crash.

And `verify` sees it. Of the write-ahead log the end may be lost, as of one that was being written.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from tensordb import TensorStorage

from .flips import EARLIER, REFUSED, RIGHT, Flip, outcomes
from .programs import made
from .scenarios import Contents, build, contents

IN_SEGMENTS, IN_CATALOG, IN_LOG = 24, 24, 24


def drawn(folder: Path, pattern: str, count: int, chance: random.Random) -> list[Flip]:
    """Return bits of files by chance; half of a catalog's lie in its first blocks, where most of it is."""
    files = [each for each in sorted(folder.rglob(pattern)) if each.stat().st_size]
    made = []
    for number in range(count):
        file = chance.choice(files)
        size = file.stat().st_size
        position = chance.randrange(min(size, 16_384) if number % 2 else size)
        made.append(Flip(str(file.relative_to(folder)), position, chance.randrange(8)))
    return made


def test_a_flipped_bit_gives_the_right_data_or_a_typed_error(tmp_path: Path) -> None:
    build(tmp_path / "db")
    chance = random.Random(8)
    flips = drawn(tmp_path / "db", "*.seg", IN_SEGMENTS, chance)
    flips += drawn(tmp_path / "db", "catalog.duckdb", IN_CATALOG, chance)
    found = outcomes(tmp_path / "db", flips)
    assert [each for each in found if each[1] not in (RIGHT, REFUSED)] == []
    assert len(found) == len(flips)
    refused = {flip.file.endswith(".seg") for flip, outcome in found if outcome == REFUSED}
    assert refused == {True, False}, "damage to segments as well as to the catalog was met"


def build_open(folder: Path, copy: Path) -> list[Contents]:
    """Copy a database while it is open, its last writes in the log; return what it held before each, newest first."""
    build(folder)
    with TensorStorage(folder) as db:
        before = []
        for number in range(4):
            before.insert(0, contents(db))
            db.insert("d", made(200 + number, 30), {"i": number}, record_id=f"late{number}")
        shutil.copytree(folder, copy)
    return before


def test_a_flipped_bit_of_the_log_is_refused_or_costs_its_end(tmp_path: Path) -> None:
    before = build_open(tmp_path / "db", tmp_path / "copy")
    flips = drawn(tmp_path / "copy", "catalog.duckdb.wal", IN_LOG, random.Random(9))
    found = outcomes(tmp_path / "copy", flips, before)
    assert [each for each in found if each[1] not in (RIGHT, REFUSED, EARLIER)] == []
    assert len(found) == len(flips)
    assert REFUSED in {outcome for _, outcome in found}
