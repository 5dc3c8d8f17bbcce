"""The command `tensordb`: parses arguments, runs one command, and turns its errors into exit codes.

Invariants: a database that is only looked at is opened read-only; errors go to stderr as one line; 1 means damage and
nothing else does.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence

import tensordb
from tensordb.cli.commands import COMMANDS, top_parser
from tensordb.cli.output import printable
from tensordb.cli.wording import in_options
from tensordb.errors import AlreadyExistsError, IntegrityError, InvalidInputError, NotFoundError, TensorDBError

OK, DAMAGED, BAD_INPUT, ENVIRONMENT, FAULT, INTERRUPTED, UNREAD = 0, 1, 2, 3, 4, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: The arguments without the program's name (default: those of this process).

    Raises:
        SystemExit: After ``--help`` and ``--version``.
    """
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that lacks a character shows its code; it is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return UNREAD
    except KeyboardInterrupt:
        return INTERRUPTED
    except (TensorDBError, OSError) as error:
        print(f"tensordb: {printable(_one_line(error))}", file=sys.stderr)
        return _code_of(error)
    except Exception:
        traceback.print_exc()
        return FAULT
    return code


def _run(arguments: list[str]) -> int:
    parser = top_parser(tensordb.__version__)
    chosen = parser.parse_args(arguments[:1]).command
    if chosen is None:
        parser.print_help(sys.stderr)
        return BAD_INPUT
    return _execute(chosen, COMMANDS[chosen].parse(arguments[1:]))


def _execute(name: str, options: argparse.Namespace) -> int:
    # Imported when a command runs: they need torch, for which help and usage errors should not wait.
    from tensordb.cli import checkpoint_changes, checkpoints
    from tensordb.cli.demo import demo
    from tensordb.cli.exchange import export, import_
    from tensordb.cli.overview import info, ls, stats, verify
    from tensordb.cli.records import head, query
    from tensordb.cli.repair import repair

    commands = {
        "demo": demo,
        "ls": ls,
        "info": info,
        "head": head,
        "query": query,
        "stats": stats,
        "verify": verify,
        "import": import_,
        "export": export,
        "repair": repair,
    }
    about_checkpoints = {
        "ls": checkpoints.ls,
        "show": checkpoints.show,
        "diff": checkpoints.diff,
        "tag": checkpoint_changes.tag,
        "untag": checkpoint_changes.untag,
        "fork": checkpoint_changes.fork,
        "rm": checkpoint_changes.rm,
        "prune": checkpoint_changes.prune,
        "export": checkpoint_changes.export,
        "import": checkpoint_changes.import_,
        "verify": checkpoints.verify,
    }
    run = about_checkpoints[options.verb] if name == "checkpoints" else commands[name]
    try:
        return OK if run(options) else DAMAGED
    except TensorDBError as error:
        said, here = str(error), in_options(str(error), vars(options))
        if said == here:
            raise
        raise type(error)(here) from error


def _code_of(error: BaseException) -> int:
    if isinstance(error, IntegrityError):
        return DAMAGED
    return BAD_INPUT if isinstance(error, InvalidInputError | NotFoundError | AlreadyExistsError) else ENVIRONMENT


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _open_closed_streams() -> None:
    """Have what was closed by who started the program (``>&-``) lead nowhere.

    Else a file of the database would be opened in its place, and get what is printed.
    """
    if None not in (sys.stdin, sys.stdout, sys.stderr):
        return
    while (nowhere := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest that is free
        pass
    os.close(nowhere)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - as long as the program runs
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _discard_output() -> None:
    """Point stdout away from the closed pipe, so that the interpreter's last flush meets no error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
