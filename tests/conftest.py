"""What all tests share: thousands of them are collected first, and garbage is not looked for among those."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Keep what was collected out of every later search for garbage, some of which tests ask for themselves."""
    gc.collect()
    gc.freeze()
