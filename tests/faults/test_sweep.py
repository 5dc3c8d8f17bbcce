"""One flipped bit at any position of any file is a typed error or harmless, and `verify` finds it in the catalog.

The suite takes some of the positions; `python -m tests.proof sweep` takes every one.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tensordb import TensorStorage
from tensordb.catalog import blocks
from tensordb.errors import IntegrityError

from .flips import REFUSED, RIGHT, Flip, outcomes
from .programs import made
from .sweeping import BLOCK, HEADERS, build_small, every_position, sweep_blocks, sweep_files


def test_every_block_of_the_catalog_that_is_in_use_is_held_to_its_checksum(tmp_path: Path) -> None:
    build_small(tmp_path / "db")
    swept, missed = sweep_blocks(tmp_path / "db" / "catalog.duckdb", range(0, BLOCK, 4001), random.Random(4))
    assert swept > 1000
    assert missed == 0


def test_a_flipped_bit_in_the_list_of_free_blocks_does_not_hide_itself(tmp_path: Path) -> None:
    build_small(tmp_path / "db")
    catalog = tmp_path / "db" / "catalog.duckdb"
    with catalog.open("rb") as content:
        layout = blocks.layout_of(blocks.read_headers(content.fileno()))
    begin = 8 + (layout.free_list >> 56) * layout.part_bytes
    found = [sweep_blocks(catalog, range(begin, begin + 64), random.Random(seed)) for seed in range(8)]
    assert sum(missed for _, missed in found) == 0


def test_a_flipped_bit_in_any_file_is_a_typed_error_or_harmless(tmp_path: Path) -> None:
    build_small(tmp_path / "db")
    found = sweep_files(tmp_path / "db", list(every_position(tmp_path / "db", random.Random(5)))[::601])
    assert found.keys() <= {RIGHT, REFUSED}
    assert found[REFUSED] > found[RIGHT]


def test_verify_names_a_damaged_block_that_no_read_would_meet(tmp_path: Path) -> None:
    build_small(tmp_path / "db")
    size = (tmp_path / "db" / "catalog.duckdb").stat().st_size
    quiet = 0
    for block in range(1, (size - HEADERS) // BLOCK, 3):
        flip = Flip("catalog.duckdb", HEADERS + block * BLOCK + 100, 3)
        ((_, outcome),) = outcomes(tmp_path / "db", [flip])
        assert outcome in (RIGHT, REFUSED)
        quiet += outcome == RIGHT
    assert quiet, "blocks of indexes are met by no read"


def test_a_sound_catalog_says_how_many_blocks_were_compared_and_goes_on(tmp_path: Path) -> None:
    build_small(tmp_path / "db")
    with TensorStorage(tmp_path / "db") as db:
        assert db.verify().catalog_blocks > 5
        db.insert("d", made(1, 5))
        with db.transaction():
            db.insert("d", made(2, 5))
            assert db.verify().catalog_blocks > 5
        assert db.verify().ok
        assert db.verify("d").catalog_blocks == 0
    with TensorStorage(tmp_path / "db", read_only=True) as db:
        assert db.verify().catalog_blocks > 5
        assert db.count("d") == 8
    with TensorStorage(None) as db:
        assert db.verify().catalog_blocks == 0


def test_a_damaged_block_is_an_integrity_error_of_verify_that_says_where(tmp_path: Path) -> None:
    build_small(tmp_path / "db")
    file = tmp_path / "db" / "catalog.duckdb"
    content = bytearray(file.read_bytes())
    with TensorStorage(tmp_path / "db", read_only=True) as db:
        number = db.verify().catalog_blocks
    content[-9] ^= 1
    file.write_bytes(content)
    with (
        TensorStorage(tmp_path / "db", read_only=True) as db,
        pytest.raises(IntegrityError, match=r"block \d+.*repair"),
    ):
        db.verify()
    assert number <= (len(content) - HEADERS) // BLOCK
