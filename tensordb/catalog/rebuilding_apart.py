"""Writing a catalog anew in a process of its own: DuckDB may crash over a file whose damage its checksums do not show.

Invariant: a crash costs the rows that were being read. The other process is told the steps at which it crashed before,
and takes those rows in smaller pieces, as it does with other damage.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tensordb import errors
from tensordb.catalog.rebuilding import rebuild
from tensordb.errors import IntegrityError, StoreError, TensorDBError

_MOST_CRASHES = 64
_OF_DAMAGE = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL}
_PROGRAM = f"""
import sys, types
package = sys.modules["tensordb"] = types.ModuleType("tensordb")
package.__path__ = [{str(Path(__file__).parents[1])!r}]
from {__name__} import main
main()
"""
"""It gets no further into the package than it needs: to import all of it would take longer than the work itself."""


class NoProcessError(StoreError):
    """The other process cannot be started, or somebody ended it: of the file that tells nothing."""


def rebuild_apart(path: Path) -> dict[str, int]:
    """Do what `rebuild` does, and outlive a crash of it.

    Returns:
        Of each table of which rows could not be copied, how many those are at most.

    Raises:
        IntegrityError: as `rebuild`; or DuckDB crashes at the first look, or again and again.
        FormatError: as `rebuild`.
        StoreError: as `rebuild`.
        NoProcessError: The other process cannot be started, or somebody ended it.
    """
    avoid: list[str] = []
    while len(avoid) < _MOST_CRASHES:
        code, told = _run(path, avoid)
        if "lost" in told:
            return {str(name): int(rows) for name, rows in told["lost"].items()}
        if "error" in told:
            raise _error(told["error"], told["message"])
        if -code not in _OF_DAMAGE or "step" not in told:
            raise NoProcessError(
                f"the process that reads {path} ended with code {code}; see that memory suffices, and repeat"
            )
        avoid.append(told["step"])
    raise IntegrityError(f"DuckDB crashed {_MOST_CRASHES} times when it read the catalog")


def _run(path: Path, avoid: list[str]) -> tuple[int, dict[str, Any]]:
    """Run the other process; return its exit code and the last that it said."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(each or os.getcwd() for each in sys.path)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(path)],
            input=json.dumps(avoid),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            check=False,
        )
    except OSError as error:
        raise NoProcessError(f"no process can be started to read {path}: {error.strerror}; repeat it later") from error
    said = [line for line in done.stdout.splitlines() if line.startswith("{") and line.endswith("}")]
    last: dict[str, Any] = json.loads(said[-1]) if said else {}
    return done.returncode, last


def _error(kind: str, message: str) -> TensorDBError:
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, TensorDBError):
        return found(message)
    return StoreError(f"the catalog could not be read: {kind}: {message}")


def main() -> None:
    """Rebuild the catalog that the arguments name; say each step before it, and in the end what was lost or failed."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    try:
        lost = rebuild(Path(sys.argv[1]), before=lambda step: _say(step=step), avoid=json.load(sys.stdin))
    except Exception as error:  # is raised anew by the one who asked
        _say(error=type(error).__name__, message=str(error))
    else:
        _say(lost=lost)


def _say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)
