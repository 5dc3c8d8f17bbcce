"""Other programs for the tests: scripts in fresh interpreters, and tensors that can be made again from a number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from tensordb import TensorStorage

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


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a program that talks over its pipes; `arguments` begin with the folder."""
    program = PREAMBLE + textwrap.dedent(code)
    pipe = subprocess.PIPE
    command = [sys.executable, "-W", "error", "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1)


def line(process: subprocess.Popen[str]) -> str:
    """Return the next line that the program says; it must not have ended."""
    assert process.stdout is not None
    text = process.stdout.readline()
    assert text, process.communicate(timeout=PATIENCE)[1]
    return text.strip()


def finish(process: subprocess.Popen[str], answer: str = "") -> str:
    """Let the program end by itself and return what it said; it must succeed with nothing on stderr."""
    out, complaints = process.communicate(answer, timeout=PATIENCE)
    assert (process.returncode, complaints) == (0, ""), f"ended with {process.returncode}: {complaints}"
    return out


def run(code: str, *arguments: object) -> str:
    """Run a program to its end."""
    return finish(start(code, *arguments))


EACH = """
import threading, time
codes = json.loads(sys.stdin.read())
for number, code in enumerate(codes):
    if not (child := os.fork()):
        folder = os.path.join(sys.argv[1], str(number))
        exec(compile(code, f"snippet {number}", "exec"), globals())
        break
    assert os.waitpid(child, 0)[1] == 0, code
"""


def run_each(codes: Sequence[str], parent: Path) -> None:
    """Run each piece of code to the end of an interpreter of its own; its `folder` is its number inside `parent`.

    They are forked off one interpreter that has imported everything, which saves seconds each. All must succeed with
    nothing on stderr and nothing said.
    """
    assert finish(start(EACH, parent), json.dumps([textwrap.dedent(code) for code in codes])) == ""


@contextmanager
def running(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a program beside the block, and end it with the block whatever happens."""
    process = start(code, *arguments)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def fork() -> int:
    """Fork although the test runner has threads, which newer Pythons warn of: the children here end by `os._exit`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


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
