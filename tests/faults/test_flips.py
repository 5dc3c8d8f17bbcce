"""One flipped bit anywhere in any file: the right data or a typed error, never a wrong tensor and never a crash."""

from __future__ import annotations

import random
from pathlib import Path

from .flips import REFUSED, RIGHT, Flip, outcomes
from .scenarios import build

IN_SEGMENTS, IN_CATALOG = 24, 24


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
