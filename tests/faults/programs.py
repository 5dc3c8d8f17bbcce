"""Other programs for the tests: scripts in interpreters of their own, and tensors made again from a number."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from tensordb import TensorStorage

from .nursery import Program, fork

PREAMBLE = """
import json, os, signal, sys, time
import torch
from tensordb import TensorStorage
from tensordb.errors import *
folder = sys.argv[1]

def made(seed, size):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))

def say(*words):
    print(*words, flush=True)
"""
PATIENCE = 120
"""Seconds that a program may take before the test fails."""


def made(seed: int, size: int) -> torch.Tensor:
    """Return the tensor that `made` gives in every program for the same numbers."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def start(code: str, *arguments: object) -> Program:
    """Start a program that talks over its pipes; `arguments` begin with the folder."""
    return Program(PREAMBLE + textwrap.dedent(code), [str(each) for each in arguments])


def run_fresh(code: str, *arguments: object) -> str:
    """Run a program in an interpreter that is started for it, to its end; return what it said."""
    command = [sys.executable, "-W", "error", "-c", PREAMBLE + textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, ""), f"ended with {done.returncode}: {done.stderr}"
    return done.stdout


def line(process: Program) -> str:
    """Return the next line that the program says; it must not have ended."""
    text = process.stdout.readline()
    assert text, process.communicate(timeout=PATIENCE)[1]
    return text.strip()


def finish(process: Program, answer: str = "") -> str:
    """Let the program end by itself and return what it said; it must succeed with nothing on stderr."""
    out, complaints = process.communicate(answer, timeout=PATIENCE)
    assert (process.returncode, complaints) == (0, ""), f"ended with {process.returncode}: {complaints}"
    return out


def run(code: str, *arguments: object) -> str:
    """Run a program to its end."""
    return finish(start(code, *arguments))


def in_another_process(folder: Path, statements: str) -> None:
    """Run statements in another process, with the database in a folder as `db`."""
    run(f"with TensorStorage(folder) as db:\n{textwrap.indent(statements, '    ')}", folder)


def run_each(codes: Sequence[str], parent: Path) -> None:
    """Run each piece of code to the end of an interpreter of its own; its `folder` is its number inside `parent`.

    All must succeed with nothing on stderr and nothing said.
    """
    for number, code in enumerate(codes):
        assert run(code, parent / str(number)) == ""


@contextmanager
def running(code: str, *arguments: object) -> Iterator[Program]:
    """Run a program beside the block, and end it with the block whatever happens."""
    process = start(code, *arguments)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def in_forked_child(body: Callable[[], object]) -> None:
    """Run the body in a forked child, and fail when it raises there."""
    child = fork()
    if child == 0:
        code = 1
        try:
            body()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def stray_segments(db: TensorStorage) -> list[str]:
    """Return the segment files that the catalog does not name."""
    with db._db.catalog.read() as con:
        rows = con.execute("SELECT DISTINCT segment FROM tensordb.objects").fetchall()
    assert db._db.folder is not None
    named = {f"{segment:016x}.seg" for (segment,) in rows}
    return sorted(set(segment_names(db._db.folder)) - named)


def segment_names(folder: Path) -> list[str]:
    """Return the names of the segment files of a database."""
    return sorted(path.name for path in (folder / "segments").glob("*"))
