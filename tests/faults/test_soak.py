"""A training loop that goes on and on takes a bounded part of the disk, of memory and of everybody's time."""

from __future__ import annotations

from pathlib import Path

import pytest

from .soaking import assert_plateau, soak


def test_what_a_busy_training_loop_takes_reaches_a_plateau(tmp_path: Path) -> None:
    assert_plateau(soak(tmp_path / "db", hours=18, rounds=10))


@pytest.mark.slow
def test_what_a_day_of_training_takes_reaches_a_plateau(tmp_path: Path) -> None:
    assert_plateau(soak(tmp_path / "db", hours=72, rounds=60))
