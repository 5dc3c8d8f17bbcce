"""What all tests share: nine thousand of them are collected first, and the garbage collector need not see them again."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Keep what was collected out of every later search for garbage, some of which tests ask for themselves."""
    gc.collect()
    gc.freeze()
