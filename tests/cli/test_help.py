"""What the command line says of itself: enough to learn it, and true."""

from __future__ import annotations

import argparse
import shlex

import pytest

import tensordb
from tensordb.cli.commands import COMMANDS, Command, Parser, top_parser

from .conftest import Run

EVERY = [command for each in COMMANDS.values() for command in each.commands]
NAMES = [command.name for command in EVERY]
VERBS = ["ls", "show", "diff", "tag", "untag", "fork", "rm", "prune", "export", "import", "verify"]


def example_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip().startswith("tensordb ")]


def parsed(line: str) -> argparse.Namespace:
    words = shlex.split(line.split(" | ")[0].split(" && ")[0].split("   ")[0])
    return COMMANDS[words[1]].parse(words[2:])


def test_the_commands_are_those_that_are_promised() -> None:
    assert list(COMMANDS) == [
        *("demo", "ls", "info", "head", "query", "stats", "verify", "repair", "import", "export", "checkpoints")
    ]
    assert [each.name for each in COMMANDS["checkpoints"].commands] == [f"checkpoints {verb}" for verb in VERBS]


def test_help_lists_each_command_with_its_summary_examples_and_exit_codes(run: Run) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    for command in COMMANDS.values():
        assert f"  {command.name:<13}{command.summary}\n" in out
    assert "examples:" in out
    assert "exit codes:" in out


@pytest.mark.parametrize("name", NAMES)
def test_each_command_explains_itself_with_examples_and_exit_codes(run: Run, name: str) -> None:
    code, out, err = run(*name.split(), "--help")
    assert (code, err) == (0, "")
    assert next(each for each in EVERY if each.name == name).description in out
    assert "exit codes:" in out
    examples = [line for line in example_lines(out) if line.startswith(f"tensordb {name} ") or line.endswith(name)]
    assert examples


def test_help_of_checkpoints_lists_each_command_with_its_summary_and_an_example(run: Run) -> None:
    code, out, err = run("checkpoints", "--help")
    assert (code, err) == (0, "")
    for verb, command in zip(VERBS, COMMANDS["checkpoints"].commands, strict=True):
        assert f"  {verb:<8}{command.summary}\n" in out
        assert f"  tensordb checkpoints {verb} " in out


@pytest.mark.parametrize("command", EVERY, ids=NAMES)
def test_each_command_and_each_of_its_arguments_has_a_help_text(command: Command) -> None:
    assert command.summary
    assert command.description
    parser = Parser()
    command.declare(parser)
    assert [action.option_strings or action.dest for action in parser._actions if not action.help] == []


@pytest.mark.parametrize("command", EVERY, ids=NAMES)
def test_every_example_of_a_command_can_be_typed_as_it_is(command: Command) -> None:
    lines = example_lines(command.examples)
    assert len(lines) == len(command.examples.splitlines())
    for line in lines:
        parsed(line)


def test_every_example_of_the_overall_help_can_be_typed_as_it_is() -> None:
    lines = [each for each in example_lines(top_parser("0").format_help()) if "PATH" not in each]
    assert len(lines) >= 6
    for line in lines:
        parsed(line)


def test_help_fits_a_terminal_of_110_columns(run: Run) -> None:
    for arguments in ([], ["checkpoints"], *(name.split() for name in NAMES)):
        assert max(map(len, run(*arguments, "--help").out.splitlines())) <= 110


def test_version_is_that_of_the_package(run: Run) -> None:
    assert run("--version") == (0, f"tensordb {tensordb.__version__}\n", "")


def test_without_arguments_the_help_is_shown_as_a_usage_error(run: Run) -> None:
    code, out, err = run()
    assert (code, out) == (2, "")
    assert "commands:" in err


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("lst", "lst"),
        ("checkpoints", "COMMAND"),
        ("checkpoints lst db", "lst"),
        ("checkpoints diff db a", "B"),
        ("checkpoints prune db run --keep-within soon", "soon"),
        ("checkpoints show db run --mode best", "best"),
        ("--jsn ls", "--jsn"),
        ("ls", "PATH"),
        ("head db", "DATASET"),
        ("head db weights -n many", "many"),
        ("head db weights --frobnicate", "--frobnicate"),
        ("query db", "DATASET"),
        ("query db weights --sql 'SELECT 1'", "--sql"),
        ("query db --sql 'SELECT 1' --limit 3", "--limit"),
        ("query db weights 'a = ?' --params '[1'", "[1"),
        ("query db weights 'a = ?' --params 3", "3"),
    ],
)
def test_bad_usage_is_one_line_on_stderr_that_names_it_and_exit_code_2(run: Run, line: str, named: str) -> None:
    code, out, err = run(*shlex.split(line))
    assert (code, out) == (2, "")
    assert err.startswith("tensordb: ")
    assert err.count("\n") == 1
    assert named in err
