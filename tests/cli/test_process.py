"""The command as a shell runs it: pipes, other processes, faults, exit codes."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from tensordb import TensorStorage

from .conftest import PROGRAM, start


def test_a_database_that_another_process_holds_is_3_and_the_error_says_who(own_folder: Path) -> None:
    with TensorStorage(own_folder) as db, db.transaction():
        process = start("ls", own_folder, "--busy-timeout", 0.2)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.count("\n")) == (3, "", 1)
    assert "busy" in err
    assert str(os.getpid()) in err


def test_looking_works_while_another_process_writes(own_folder: Path) -> None:
    with TensorStorage(own_folder) as db:
        db.create_dataset("new")
        process = start("ls", own_folder)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "new" in out


def test_a_reader_that_goes_away_is_met_in_silence(folder: Path) -> None:
    process = start("query", folder, "weights", "--json")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


def test_output_that_the_terminal_cannot_show_is_escaped(folder: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "40"}
    process = start("head", folder, "weights", env=environment)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "\\u2026" in out


def test_output_that_was_closed_is_no_fault_and_nothing_is_written_in_its_place(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    command = [sys.executable, "-c", PROGRAM]
    for arguments, closed, code in ((["verify", folder], ">&-", 0), (["ls", folder / "no", "--json"], "2>&-", 2)):
        line = f"{shlex.join(map(str, [*command, *arguments]))} {closed}"
        done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before


def test_a_fault_of_the_program_is_4_with_its_traceback(folder: Path) -> None:
    broken = (
        "import sys, tensordb.cli.overview as overview\n"
        "def ls(options): raise RuntimeError('a fault')\n"
        "overview.ls = ls\n"
        "from tensordb.cli import main; sys.exit(main())"
    )
    process = start("ls", folder, program=broken)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "Traceback" in err
    assert "a fault" in err


def test_the_installed_command_runs(folder: Path) -> None:
    command = Path(sys.executable).with_name("tensordb")
    done = subprocess.run([command, "verify", folder], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("intact\n")
