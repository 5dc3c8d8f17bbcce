"""The list of deliberate breaks fits the engine as it is; ``python -m tests.mutations`` carries them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from .breaks import BREAKS, Break

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("each", BREAKS, ids=lambda each: each.title)
def test_a_break_changes_one_place_and_its_tests_are_there(each: Break) -> None:
    assert (ROOT / each.file).read_text(encoding="utf-8").count(each.old) == 1
    assert each.old != each.new
    assert all((ROOT / name).exists() for name in each.tests if name.endswith(".py"))


def test_there_are_at_least_twenty_breaks() -> None:
    assert len({each.title for each in BREAKS}) == len(BREAKS) >= 20
