"""The long form of test_nth_failure: every call of every operation, in every way."""

from __future__ import annotations

import random
import tempfile
import time
from functools import partial
from pathlib import Path

from .scenarios import SCENARIOS
from .test_nth_failure import Sweep, calls_of_making, chosen, fail_while_made, made_base


def run(minutes: float, seed: int) -> dict[str, int]:
    """Fail calls until all were or the time is over; return how many failed, and how many broke a promise."""
    end, failed, broken = time.monotonic() + 60 * minutes, 0, 0
    with tempfile.TemporaryDirectory() as work:
        base, new = made_base(Path(work) / "base"), Path(work) / "deep" / "db"
        cases = [("make", partial(fail_while_made, new, *each)) for each in chosen(calls_of_making(new), every=True)]
        for name, act in SCENARIOS.items():
            sweep = Sweep(base, Path(work) / name, act)
            cases += [(name, partial(sweep.case, *each)) for each in chosen(sweep.calls, every=True)]
        random.Random(seed).shuffle(cases)
        for name, case in cases:
            if time.monotonic() > end:
                break
            try:
                failed += case() is not None
            except AssertionError as error:
                broken += 1
                print(f"{name}: {error}")
    return {"calls failed": failed, "of": len(cases), "promises broken": broken}
