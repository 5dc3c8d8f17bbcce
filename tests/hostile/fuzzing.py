"""What the fuzzers of this folder share: targets that the first byte of an input chooses, seeds, and limits."""

from __future__ import annotations

import os
import random
import resource
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import atheris

from tensordb.errors import TensorDBError

ENOUGH = 5
"""Inputs of a target that must be accepted, for a run to have looked at more than refusals."""
Mutator = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Target:
    """What reads bytes, and what to begin with.

    Attributes:
        name: For messages.
        read: Reads an input and checks what it gives; returns whether it was accepted, raises a refusal, or breaks.
        refusals: The errors that it may raise.
        seeds: Inputs that are accepted.
        mutated: Changes an input by its structure; it may raise for one that has none.
    """

    name: str
    read: Callable[[bytes], None]
    refusals: tuple[type[TensorDBError], ...]
    seeds: Sequence[bytes]
    mutated: Mutator


def run(targets: Sequence[Target], spare_memory: int) -> None:
    """Fuzz with the arguments of the command until they are fulfilled; a broken promise ends the process."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core: coverage is counted without other threads
    accepted: Counter[str] = Counter()

    def one_input(data: bytes) -> None:
        if not data:
            return
        target = targets[data[0] % len(targets)]
        try:
            target.read(data[1:])
        except target.refusals as error:
            _check_refusal(error)
            return
        accepted[target.name] += 1
        if accepted[target.name] == ENOUGH:
            print(f"{target.name}: {ENOUGH} accepted", flush=True)

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        number = data[0] % len(targets) if data and chance.random() < 0.9 else chance.randrange(len(targets))
        target = targets[number]
        old = data[1:] if data and data[0] % len(targets) == number else chance.choice(target.seeds)
        return bytes((number,)) + _changed(target, old, most - 1, chance)

    _write_seeds(targets)
    atheris.Setup(sys.argv, one_input, custom_mutator=mutated)
    limit_memory(spare_memory)
    atheris.Fuzz()


def limit_memory(spare: int) -> None:
    """Let an allocation beyond what is spare fail, which is then found as a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + spare
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _changed(target: Target, data: bytes, most: int, chance: random.Random) -> bytes:
    if chance.random() < 0.2:
        return bytes(atheris.Mutate(data[:most], most))[:most]
    try:
        for _ in range(chance.randint(1, 3)):
            data = target.mutated(data, chance)
    except Exception:  # it has none of the structure any more
        return bytes(atheris.Mutate(data[:most], most))[:most]
    return data if len(data) <= most else chance.choice(target.seeds)


def _check_refusal(error: BaseException) -> None:
    """Raise for a refusal that hides a lack of memory: then the reader had believed a claim."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause) is MemoryError:  # that of Arrow, a subclass, is its own: it asks for what a page is said to take
            raise AssertionError(f"refused only once memory was gone: {error}") from error
        cause = cause.__cause__ or cause.__context__


def _write_seeds(targets: Sequence[Target]) -> None:
    """Write the seeds into the first corpus that the command names, unless there is one of an earlier run."""
    folders = [Path(each) for each in sys.argv[1:] if not each.startswith("-")]
    if folders and folders[0].is_dir() and not any(folders[0].iterdir()):
        for number, target in enumerate(targets):
            for place, seed in enumerate(target.seeds):
                (folders[0] / f"{target.name}-{place}").write_bytes(bytes((number,)) + seed)
