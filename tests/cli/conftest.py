"""A small real database for the commands to look at, and the ways to run them."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tensordb import TensorStorage
from tensordb.cli import main

PROGRAM = "import sys; from tensordb.cli import main; sys.exit(main())"


class Finished(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Finished]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def run_main(*arguments: object) -> Finished:
        try:
            code = main([str(each) for each in arguments])
        except SystemExit as end:  # after --help and --version
            code = int(end.code or 0)
        return Finished(code, *capsys.readouterr())

    return run_main


def start(*arguments: object, program: str = PROGRAM, **options: object) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **options)  # type: ignore[call-overload, no-any-return]


def build(folder: Path) -> Path:
    """Fill a database: five weights with metadata of every kind, an empty dataset, and one with a hostile name."""
    with TensorStorage(folder) as db:
        db.create_dataset("weights", {"dtype": "float32", "metadata": {"epoch": "int"}})
        generator = torch.Generator().manual_seed(0)
        for epoch in range(5):
            loss = float("nan") if epoch == 0 else 1 / epoch
            moment = dt.datetime(2024, 5, 1, 12, epoch, tzinfo=dt.UTC)
            metadata = {"epoch": epoch, "loss": loss, "at": moment, "lr": {"base": 0.1}, "tags": ["a", None]}
            db.insert("weights", torch.randn(64, 64, generator=generator), metadata, record_id=f"w{epoch}")
        db.create_dataset("empty", compression_preset="maximum")
        db.create_dataset('evil\x1b[31m"name')
        db.insert('evil\x1b[31m"name', torch.tensor([float("nan"), float("inf"), 1.0]), {"note": "two\nlines\x07"})
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that tests only look at."""
    return build(tmp_path_factory.mktemp("cli") / "runs.tdb")


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """A database that a test may harm."""
    return build(tmp_path / "runs.tdb")
