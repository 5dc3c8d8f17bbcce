"""The long form of test_sweep: one bit at every position of every file, as far as the time goes."""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from .flips import REFUSED, RIGHT
from .sweeping import BLOCK, build_small, every_position, sweep_blocks, sweep_files

_AT_ONCE = 64


def run(minutes: float, seed: int) -> dict[str, int]:
    """Sweep the catalog's blocks and all other files, half the time each; return how many positions there were."""
    begun, chance, met = time.monotonic(), random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "db"
        build_small(folder)
        swept = missed = 0
        order = chance.sample(range(0, BLOCK, _AT_ONCE), BLOCK // _AT_ONCE)
        for offset in order:
            if time.monotonic() > begun + 30 * minutes:
                break
            some = sweep_blocks(folder / "catalog.duckdb", range(offset, offset + _AT_ONCE), chance)
            swept, missed = swept + some[0], missed + some[1]
        flips = list(every_position(folder, chance))
        chance.shuffle(flips)
        for begin in range(0, len(flips), _AT_ONCE):
            if time.monotonic() > begun + 60 * minutes:
                break
            met.update(sweep_files(folder, flips[begin : begin + _AT_ONCE]))
    broken = missed + sum(met.values()) - met[RIGHT] - met[REFUSED]
    return {
        "positions in catalog blocks": swept,
        "positions elsewhere": sum(met.values()),
        "of": len(flips),
        **met,
        "promises broken": broken,
    }
