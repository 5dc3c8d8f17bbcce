"""The long form of test_flips: one bit after another of every file, by chance, and every bit where there is time."""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from .flips import EARLIER, REFUSED, RIGHT, outcomes, summary
from .test_flips import build_open, drawn

_AT_ONCE = 64


def run(minutes: float, seed: int) -> dict[str, int]:
    """Flip bits until the time is over; return how many, and what was met."""
    end, chance = time.monotonic() + 60 * minutes, random.Random(seed)
    met: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as work:
        folder, opened = Path(work) / "db", Path(work) / "opened"
        before = build_open(folder, opened)
        while time.monotonic() < end:
            flips = drawn(folder, "*.seg", _AT_ONCE, chance) + drawn(folder, "catalog.duckdb", _AT_ONCE, chance)
            in_log = drawn(opened, "catalog.duckdb.wal", _AT_ONCE // 4, chance)
            found = outcomes(folder, flips) + outcomes(opened, in_log, before)
            met.update(summary(found))
            for flip, outcome in found:
                if outcome not in (RIGHT, REFUSED, EARLIER):
                    print(f"{flip}: {outcome}")
    broken = sum(met.values()) - met[RIGHT] - met[REFUSED] - met[EARLIER]
    return {"bits flipped": sum(met.values()), **met, "promises broken": broken}
