"""Other processes for the tests: a script in a fresh interpreter, or a forked child whose verdict is its exit code."""

import os
import subprocess
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import tensordb

DATABASE = bytes(range(16))
PREAMBLE = f"""
import os, resource, sys, types
from pathlib import Path
package = sys.modules["tensordb"] = types.ModuleType("tensordb")
package.__path__ = {list(tensordb.__path__)!r}  # no more of it than segments need: all of it loads torch
from tensordb.errors import *
from tensordb.payloads import *
store = SegmentStore(Path(sys.argv[1]), read_only=False, database_id=bytes(range(16)))
"""


def start(script: str, folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """Start a script that has an open `store` on the folder; it talks over its pipes."""
    command = [sys.executable, "-c", PREAMBLE + textwrap.dedent(script), str(folder), *map(str, arguments)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


def run(script: str, folder: Path, *arguments: object) -> str:
    """Run such a script to its end and return what it printed; it must succeed and say nothing on stderr."""
    process = start(script, folder, *arguments)
    output, complaints = process.communicate(timeout=60)
    assert process.returncode == 0, complaints
    assert complaints == ""
    return output


def fork() -> int:
    """Fork although the test runner has threads, which newer Pythons warn of: the children here end by `os._exit`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def in_forked_child(body: Callable[[], None]) -> None:
    """Run the body in a forked child and fail when it raises there."""
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
