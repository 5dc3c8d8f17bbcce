"""The long form of test_power_cut: every state that is rebuilt, of one recording after another."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

from .power_cuts import cuts, failures, recorded


def run(minutes: float, seed: int) -> dict[str, int]:
    """Open states in random order until the time is over; return how many, and how many broke a promise."""
    end, opened, broken, recordings = time.monotonic() + 60 * minutes, 0, 0, 0
    chance = random.Random(seed)
    while time.monotonic() < end:
        with tempfile.TemporaryDirectory() as work:
            (recording,) = recorded(Path(work))
            recordings += 1
            every = list(cuts(recording, chance.randrange(2**31)))
            for cut in chance.sample(every, len(every)):
                if time.monotonic() > end:
                    break
                wrong = failures(recording, [cut], Path(work) / "state")
                opened, broken = opened + 1, broken + len(wrong)
                print("".join(f"{each}\n" for each in wrong), end="")
    return {"recordings": recordings, "states opened": opened, "promises broken": broken}
