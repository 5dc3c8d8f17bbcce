"""The attacks in their long form: each goes on until its time is over, and returns figures.

An attack is a function of the seconds it may take and of a seed; it raises where a promise is broken, with the seed
that repeats it.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults import long_flips, long_nth_failure, long_power_cut, long_salvage, long_sweep
from tests.faults.crowding import crowd
from tests.faults.killing import kill_often, killer
from tests.faults.soaking import assert_plateau, figures_of, soak
from tests.hostile import long_fuzz
from tests.stateful.running import run_model

Figures = dict[str, float]
Attack = Callable[[float, int], Figures]

_KILLS_A_ROUND = 25
_EXAMPLES, _STEPS = 10, 60
_LEAST_HOURS = 24


def model(seconds: float, seed: int) -> Figures:
    """Drive the public API in any order beside a plain dict, and compare at every step."""
    end, number, steps, examples = time.monotonic() + seconds, seed, 0, 0
    while not examples or time.monotonic() < end:
        steps += run_model(number, on_disk=number % 2 == 0, examples=_EXAMPLES, steps=_STEPS)
        examples += _EXAMPLES
        number += 1
    return {"sequences": examples, "steps compared": steps, "last seed": number - 1}


def kill(seconds: float, seed: int) -> Figures:
    """Kill writers at random moments, and hold the database to what was acknowledged."""
    end, number = time.monotonic() + seconds, seed
    figures: Figures = {"kills": 0, "operations acknowledged": 0, "killed inside one": 0, "orphans reclaimed": 0}
    while not figures["kills"] or time.monotonic() < end:
        with _folder() as folder, killer(folder / "db") as subject:
            try:
                kill_often(subject, _KILLS_A_ROUND, random.Random(number), most=10)
            except BaseException as error:
                error.add_note(f"Repeat with python -m tests.proof kill --seed {number}")
                raise
            figures["kills"] += _KILLS_A_ROUND
            figures["operations acknowledged"] += sum(subject.acknowledged.values())
            figures["killed inside one"] += sum(subject.interrupted.values())
            figures["orphans reclaimed"] += subject.orphans
        number += 1
    return {**figures, "last seed": number - 1}


def in_a_crowd(seconds: float, seed: int) -> Figures:
    """Let four writers and four readers loose on one folder, with threads inside and forks in between."""
    with _folder() as folder:
        return crowd(folder / "db", seconds, seed=seed)


def soaked(seconds: float, seed: int) -> Figures:
    """Train hour after hour; disk, catalog, opening, memory and open files reach a plateau."""
    end, hours = time.monotonic() + seconds, 0

    def over() -> bool:
        nonlocal hours
        hours += 1
        return hours >= _LEAST_HOURS and time.monotonic() > end

    with _folder() as folder:
        measured = soak(folder / "db", hours=100_000, rounds=60, until=over)
    assert_plateau(measured)
    return figures_of(measured)


def _unbroken(run: Callable[[float, int], dict[str, int]]) -> Attack:
    """Return an attack that counts the promises it broke, made to raise for them."""

    def attack(seconds: float, seed: int) -> Figures:
        figures = run(seconds / 60, seed)
        if figures.get("promises broken"):
            raise AssertionError(f"{figures}; each is printed above; repeat with --seed {seed}")
        return dict(figures)

    return attack


ATTACKS: dict[str, Attack] = {
    "model": model,
    "kill": kill,
    "failure": _unbroken(long_nth_failure.run),
    "power": _unbroken(long_power_cut.run),
    "flips": _unbroken(long_flips.run),
    "sweep": _unbroken(long_sweep.run),
    "salvage": _unbroken(long_salvage.run),
    "crowd": in_a_crowd,
    "soak": soaked,
    "fuzz": _unbroken(long_fuzz.run),
}
"""By the names that the command takes."""


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tensordb-proof-") as folder:
        yield Path(folder)
