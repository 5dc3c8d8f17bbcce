"""The long form of test_nth_failure: every call of every operation, in every way."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

from .scenarios import SCENARIOS, build
from .test_nth_failure import Sweep, chosen


def run(minutes: float, seed: int) -> dict[str, int]:
    """Fail calls until all were or the time is over; return how many failed, and how many broke a promise."""
    end, failed, broken = time.monotonic() + 60 * minutes, 0, 0
    with tempfile.TemporaryDirectory() as work:
        base = Path(work) / "base"
        build(base)
        cases = []
        for name, act in SCENARIOS.items():
            sweep = Sweep(base, Path(work) / name, act)
            cases += [(name, sweep, at, kind) for at, kind in chosen(sweep.calls, every=True)]
        random.Random(seed).shuffle(cases)
        for name, sweep, at, kind in cases:
            if time.monotonic() > end:
                break
            try:
                failed += sweep.case(at, kind) is not None
            except AssertionError as error:
                broken += 1
                print(f"{name}: {error}")
    return {"calls failed": failed, "of": len(cases), "promises broken": broken}
