"""The demo as a newcomer runs it."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

from tensordb import COMPRESSION_PRESETS, TensorStorage

from .conftest import Run, start

LIMIT_S = 240
"""The demo takes about ten seconds; a machine that runs other tests at the same time may need many more."""


def test_the_demo_shows_every_step_and_keeps_a_database_that_its_hints_open(run: Run, tmp_path: Path) -> None:
    scratch, kept = tmp_path / "scratch", tmp_path / "digits.tdb"
    scratch.mkdir()
    process = start("demo", kept, env={**os.environ, "TMPDIR": str(scratch)})
    out, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, err) == (0, "")
    assert [line for line in out.splitlines() if len(line) > 100 and str(kept) not in line] == []
    assert list(scratch.glob("*tensordb*")) == [], "trial databases are removed"
    assert_presets_are_compared(out)
    assert json.loads(run("ls", kept, "--json").out)[0]["records"] == 1797
    assert run("verify", kept).code == 0
    assert f"tensordb verify {kept}" in out
    with TensorStorage(kept, read_only=True) as db:
        assert db.count("weights", "metadata.epoch = 12") == 6
        best = db.sql("SELECT max(metadata.accuracy) AS best FROM weights")["best"][0].as_py()
    assert best > 0.95


def assert_presets_are_compared(out: str) -> None:
    lines = out[out.index("Compare the presets") :].splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line.endswith("%")}
    assert list(rows) == list(COMPRESSION_PRESETS)
    ratios = {name: float(re.findall(r"B +(\d+\.\d{3})", " ".join(row))[0]) for name, row in rows.items()}
    assert ratios["maximum"] > ratios["balanced"] > ratios["lossless"] > ratios["none"]
    assert rows["lossless"][-1] == rows["none"][-1]
    assert all(float(row[-1].rstrip("%")) > 90 for row in rows.values())


def test_the_demo_refuses_a_folder_that_holds_something(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    code, out, err = run("demo", tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert [each.name for each in tmp_path.iterdir()] == ["mine.txt"]


def test_without_scikit_learn_the_demo_names_the_extra_and_leaves_nothing_behind(tmp_path: Path) -> None:
    program = "import sys; sys.modules['sklearn'] = None; from tensordb.cli import main; sys.exit(main())"
    process = start("demo", tmp_path / "new.tdb", program=program, env={**os.environ, "TMPDIR": str(tmp_path)})
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.count("\n")) == (3, "", 1)
    assert "pip install 'tensordb[demo]'" in err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_demo_ends_in_silence_and_removes_its_temporary_database(tmp_path: Path) -> None:
    process = start("demo", env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    while not process.stdout.readline().startswith("2. Train"):
        assert process.poll() is None
    assert len(list(tmp_path.glob("tensordb-demo-*"))) == 1
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert list(tmp_path.glob("*tensordb*")) == []
