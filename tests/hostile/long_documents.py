"""The long form of test_documents."""

from __future__ import annotations

import time

from .documents_fuzzer import fuzz

_AT_ONCE = 10_000


def run(minutes: float, seed: int) -> dict[str, int]:
    """Read changed documents until the time is over; return how many, and how many were documents still."""
    end, totals = time.monotonic() + 60 * minutes, {"inputs": 0, "documents": 0}
    while time.monotonic() < end:
        seed += 1
        totals = {key: totals[key] + value for key, value in fuzz(_AT_ONCE, seed).items()}
    return totals
