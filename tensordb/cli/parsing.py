"""What a command of the command line is: arguments, help, and families of commands.

Only argparse is needed here, so that help and usage errors cost no import of torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from tensordb.errors import InvalidInputError

EXIT_CODES = """\
exit codes:
  0    done, and nothing is wrong
  1    damage: stored bytes are not what was written, or nobody can tell here
  2    bad usage or input: unknown option, dataset, checkpoint or field, no database at PATH
  3    busy or environment: another process holds the database, file system, missing package
  4    a fault in tensordb itself, with a traceback
  130  interrupted; 141: nobody read the output to its end"""


Declare = Callable[[argparse.ArgumentParser], None]


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are for `main` to print."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing a usage text."""
        raise InvalidInputError(f"{message} (see '{self.prog} --help')")


@dataclass(frozen=True)
class Command:
    """One command of the command line.

    Attributes:
        name: As it is typed, with the name of its family before it.
        summary: One line for the list of commands.
        description: What it does, in sentences.
        examples: Command lines, one a line.
        declare: Adds its arguments to a parser.
    """

    name: str
    summary: str
    description: str
    examples: str
    declare: Declare

    @property
    def commands(self) -> tuple[Command, ...]:
        """Itself."""
        return (self,)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Return the options; raises InvalidInputError for bad usage, and SystemExit after ``--help``."""
        parser = Parser(
            prog=f"tensordb {self.name}",
            description=self.description,
            epilog=f"examples:\n{_indented(self.examples)}\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.declare(parser)
        # Intermixed, so that options may stand between DATASET and WHERE.
        return parser.parse_intermixed_args(arguments)


@dataclass(frozen=True)
class Family:
    """Commands behind one name: ``tensordb NAME COMMAND``.

    Attributes:
        name: As it is typed.
        summary: One line for the list of commands.
        description: What they are about, in sentences.
        commands: The commands.
    """

    name: str
    summary: str
    description: str
    commands: tuple[Command, ...]

    @property
    def examples(self) -> str:
        """The first example of each command."""
        return "\n".join(each.examples.splitlines()[0] for each in self.commands)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Return the options of one of its commands, with its own name as ``verb``."""
        verbs = {each.name.rpartition(" ")[2]: each for each in self.commands}
        listing = "\n".join(f"  {verb:<8}{each.summary}" for verb, each in verbs.items())
        parser = Parser(
            prog=f"tensordb {self.name}",
            usage=f"tensordb {self.name} [--help] COMMAND ...",
            description=f"{self.description}\n\ncommands:\n{listing}",
            epilog=f"examples:\n{_indented(self.examples)}\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.add_argument("verb", choices=list(verbs), metavar="COMMAND", help="one of the commands above")
        verb = parser.parse_args(arguments[:1]).verb
        options = verbs[verb].parse(arguments[1:])
        options.verb = verb
        return options


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def declare_access(parser: argparse.ArgumentParser, *, writes: bool = False) -> None:
    """Add what every command on a database takes."""
    place = "folder of the database" if writes else "folder of the database; it is only read"
    parser.add_argument("path", metavar="PATH", help=place)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument(
        "--busy-timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="how long to wait for other processes (default: %(default)g)",
    )
