"""Every state of the disk that a power cut may leave opens, and holds what was acknowledged before it."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from .power import EVERYTHING, NOTHING
from .power_cuts import Cut, Recording, cuts, failures, recorded

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace records the program")


LEFT_OUT = ("sync_file", "sync_directory")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recording]:
    """The program as it is, by the name "", and without each of two calls."""
    every = recorded(tmp_path_factory.mktemp("cuts"), *LEFT_OUT)
    return dict(zip(("", *LEFT_OUT), every, strict=True))


def right_after(recording: Recording) -> list[Cut]:
    """Return the states right after each acknowledgement in which nothing is there that was not synced."""
    ends = {number for number, event in enumerate(recording.events, 1) if event.call == "done"}
    surest = {cut.events: cut for cut in cuts(recording) if cut.events in ends and cut.kind == EVERYTHING}
    surest |= {cut.events: cut for cut in cuts(recording) if cut.events in ends and cut.kind == NOTHING}
    return list(surest.values())


def test_after_a_power_cut_everything_acknowledged_is_there(recordings: dict[str, Recording], tmp_path: Path) -> None:
    recording = recordings[""]
    surest = right_after(recording)
    assert len(surest) >= 10
    some = random.Random(3).sample(list(cuts(recording)), 15)
    assert failures(recording, [*surest, *some], tmp_path / "state") == []


@pytest.mark.parametrize("left_out", LEFT_OUT)
def test_a_sync_that_is_left_out_shows(recordings: dict[str, Recording], tmp_path: Path, left_out: str) -> None:
    recording = recordings[left_out]
    assert any(failures(recording, [cut], tmp_path / "state") for cut in right_after(recording))
