"""Statements that run in another process, each in one of its own, none of which has to import torch first."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Another = Callable[[Path, str], None]
"""Runs statements with the database in a folder as `db`."""

_PROGRAM = """
import json, os, sys
import torch
from tensordb import TensorStorage
for line in sys.stdin:
    folder, code = json.loads(line)
    if not (child := os.fork()):
        status = 1
        try:
            with TensorStorage(folder) as db:
                exec(compile(code, "statements", "exec"))
            status = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    print(os.waitpid(child, 0)[1], flush=True)
"""
"""Forks for each line that it is given; it has imported everything itself, and opens nothing."""


@contextmanager
def another() -> Iterator[Another]:
    """Give the means to run statements in other processes, for as long as the block lasts."""
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:

        def run(folder: Path, statements: str) -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps([str(folder), statements]) + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == "0\n", statements

        yield run
