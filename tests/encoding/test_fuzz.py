"""A fixed number of inputs of the coverage-guided fuzzer: none may crash, hang, take memory or read two ways."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tensordb

RUNS = 6_000
GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this platform")
def test_no_input_of_the_fuzzer_breaks_a_promise(tmp_path: Path) -> None:
    corpus, found = tmp_path / "corpus", tmp_path / "found"
    corpus.mkdir()
    found.mkdir()
    options = [f"-runs={RUNS}", "-seed=1", "-max_len=4096", "-timeout=30", f"-artifact_prefix={found}/"]
    command = [sys.executable, "-m", "encoding.payload_fuzzer", *options, str(corpus), str(GOLDEN)]
    room = {
        "cwd": Path(__file__).parents[1],
        "env": os.environ | {"PYTHONPATH": str(Path(tensordb.__file__).parents[1])},
    }
    done = subprocess.run(command, **room, capture_output=True, text=True, errors="replace", timeout=600)
    inputs = "\n".join(f"{path.name}: {path.read_bytes().hex()}" for path in found.iterdir())
    assert done.returncode == 0, f"{_of_error(done.stderr)}\nthe inputs, in hex:\n{inputs}"
    assert "passed the checks" in done.stdout, "nearly all inputs are refused at once; teach mutations.py the format"


def _of_error(log: str) -> str:
    at = log.find("Uncaught Python exception")
    return log[at:] if at >= 0 else log[-5000:]
