"""One bit flipped at every position of a small database, in every file of it.

Segments, locks and the headers of the catalog are swept by opening the database and reading everything. The blocks of
the catalog are a hundred times as many positions; each has a checksum of its own, so one bit is flipped in all of them
at once, and `verify` has to name every block that is in use.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tensordb import TensorStorage
from tensordb.catalog import blocks

from .flips import Flip, outcomes, summary
from .programs import made

HEADERS = 3 * 4096
BLOCK = 1 << 18


def build_small(folder: Path) -> None:
    """Make a database with each kind of payload, in as few bytes as can be."""
    with TensorStorage(folder) as db:
        db.create_dataset("d")
        db.insert("d", made(1, 5), {"i": 1}, record_id="inline")
        db.insert("d", made(2, 1200), {"i": 2}, record_id="alone")
        db.insert_many("d", [made(3 + i, 40) for i in range(4)], record_ids=[f"page{i}" for i in range(4)])
        weight = made(9, 1500)
        db.checkpoints.save("r", {"w": weight}, step=0, rng=False)
        db.checkpoints.save("r", {"w": weight + 1e-4}, step=1, rng=False)


def every_position(folder: Path, chance: random.Random) -> Iterator[Flip]:
    """Yield a flip of one bit of each byte, of all files but the catalog's blocks."""
    for file in sorted(each for each in folder.rglob("*") if each.is_file()):
        end = HEADERS if file.name == "catalog.duckdb" else file.stat().st_size
        for position in range(end):
            yield Flip(str(file.relative_to(folder)), position, chance.randrange(8))


def sweep_files(folder: Path, flips: list[Flip]) -> Counter[str]:
    """Flip one after the other; return how often each outcome was met."""
    return Counter(summary(outcomes(folder, flips)))


def sweep_blocks(file: Path, offsets: range, chance: random.Random) -> tuple[int, int]:
    """Flip a bit at each offset within all blocks in use; return how many bits, and how many were not found."""
    content = bytearray(file.read_bytes())
    whole = blocks.check(file)
    assert whole.compared
    assert not whole.damaged
    swept = missed = 0
    work = file.with_name("swept.duckdb")
    work.write_bytes(content)
    for offset in offsets:
        flips = [
            (place, 1 << chance.randrange(8))
            for number, place in enumerate(range(HEADERS + offset, len(content), BLOCK))
            if number not in whole.free
        ]
        swept += len(flips)
        if len(_found(work, content, flips)) < len(flips):  # one of them may have hidden others: each alone
            missed += sum(not _found(work, content, [flip]) for flip in flips)
    work.unlink()
    return swept, missed


def _found(work: Path, content: bytearray, flips: list[tuple[int, int]]) -> tuple[str, ...]:
    """Flip these bits of the file, and back; return the damage that is found meanwhile."""
    with work.open("r+b", buffering=0) as opened:
        for place, bit in flips:
            opened.seek(place)
            opened.write(bytes([content[place] ^ bit]))
        found = blocks.check(work).damaged
        for place, _ in flips:
            opened.seek(place)
            opened.write(content[place : place + 1])
    return found
