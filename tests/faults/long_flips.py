"""The long form of test_flips: one bit after another of every file, by chance, and every bit where there is time."""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from .flips import REFUSED, RIGHT, outcomes, summary
from .scenarios import build
from .test_flips import drawn

_AT_ONCE = 64


def run(minutes: float, seed: int) -> dict[str, int]:
    """Flip bits until the time is over; return how many, and what was met."""
    end, chance = time.monotonic() + 60 * minutes, random.Random(seed)
    met: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "db"
        build(folder)
        while time.monotonic() < end:
            flips = drawn(folder, "*.seg", _AT_ONCE, chance) + drawn(folder, "catalog.duckdb", _AT_ONCE, chance)
            found = outcomes(folder, flips)
            met.update(summary(found))
            for flip, outcome in found:
                if outcome not in (RIGHT, REFUSED):
                    print(f"{flip}: {outcome}")
    broken = sum(met.values()) - met[RIGHT] - met[REFUSED]
    return {"bits flipped": sum(met.values()), **met, "promises broken": broken}
