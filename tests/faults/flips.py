"""Flipping one bit of a database after another, in forked children: DuckDB may end the process that reads damage."""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tensordb import TensorStorage
from tensordb.errors import TensorDBError

from .programs import fork
from .scenarios import Contents, contents

RIGHT, REFUSED, WRONG, UNTYPED, MISSED, CRASHED = "right", "refused", "wrong", "untyped", "missed by verify", "crashed"
_OUTCOMES = (RIGHT, REFUSED, WRONG, UNTYPED, MISSED)
_BATCH = 64


@dataclass(frozen=True)
class Flip:
    """A bit of a file of a database."""

    file: str
    position: int
    bit: int


def outcomes(folder: Path, flips: Sequence[Flip]) -> list[tuple[Flip, str]]:
    """Return what reading everything gave after each flip alone; the folder is left as it was."""
    with TensorStorage(folder, read_only=True) as db:
        expected = contents(db)
    found: list[tuple[Flip, str]] = []
    rest = list(flips)
    while rest:
        batch = rest[:_BATCH]
        told = _in_child(folder, batch, expected)
        found += [(each, _OUTCOMES[number]) for each, number in zip(batch, told, strict=False)]
        if len(told) < len(batch):  # the child ended in the middle
            crashed = batch[len(told)]
            _flip(folder, crashed)  # which was not taken back
            found.append((crashed, CRASHED))
        rest = rest[min(len(told) + 1, len(batch)) :]
    return found


def summary(found: Sequence[tuple[Flip, str]]) -> dict[str, int]:
    """Return how often each outcome was met."""
    return dict(Counter(outcome for _, outcome in found))


def _in_child(folder: Path, batch: Sequence[Flip], expected: Contents) -> list[int]:
    reading, writing = os.pipe()
    child = fork()
    if not child:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        try:
            for each in batch:
                _flip(folder, each)
                outcome = _outcome(folder, expected)
                _flip(folder, each)
                os.write(writing, struct.pack("B", _OUTCOMES.index(outcome)))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        numbers = list(told.read())
    os.waitpid(child, 0)
    return numbers


def _outcome(folder: Path, expected: Contents) -> str:
    try:
        with TensorStorage(folder, read_only=True, busy_timeout=5) as db:
            try:
                if contents(db) == expected:
                    return RIGHT
                return WRONG
            except TensorDBError:
                return REFUSED if _found_by_verify(db) else MISSED
    except TensorDBError:
        return REFUSED
    except Exception:
        return UNTYPED


def _found_by_verify(db: TensorStorage) -> bool:
    try:
        return not db.verify().ok
    except TensorDBError:
        return True


def _flip(folder: Path, flip: Flip) -> None:
    descriptor = os.open(folder / flip.file, os.O_RDWR)
    try:
        (byte,) = os.pread(descriptor, 1, flip.position)
        os.pwrite(descriptor, bytes([byte ^ (1 << flip.bit)]), flip.position)
    finally:
        os.close(descriptor)
